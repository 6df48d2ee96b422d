//! The settings file: TOML, its keys are the names of the flags. What is wrong is said with its line and what to do about it.

use std::path::Path;

use toml::de::DeTable;

use super::names;
use super::options::Options;
use crate::exit::{Exit, Kind};

/// Reads a settings file. Hyphens and underscores in keys are the same.
pub fn read(path: &Path) -> Result<Options, Exit> {
    let bad = |why: String| Exit::new(Kind::Config, format!("settings file {}{why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| bad(format!(": {e}; name another by --config")))?;
    parse(&text).map_err(|(line, why)| bad(line.map_or(format!(": {why}"), |line| format!(", line {line}: {why}"))))
}

type Wrong = (Option<usize>, String);

fn parse(text: &str) -> Result<Options, Wrong> {
    let line = |at: usize| text.as_bytes()[..at.min(text.len())].split(|b| *b == b'\n').count();
    let syntax = |e: &toml::de::Error| (e.span().map(|span| line(span.start)), one_line(e.message()));
    let table = DeTable::parse(text).map_err(|e| syntax(&e))?;
    let mut found: Vec<(usize, String)> = Vec::new();
    for (key, _) in table.get_ref() {
        let at = line(key.span().start);
        let name = key.get_ref().replace('-', "_");
        if !Options::KEYS.contains(&name.as_str()) {
            let known = Options::KEYS.iter().map(|key| key.replace('_', "-"));
            let advice = names::nearest(key.get_ref(), known).map_or_else(
                || "the keys are the flags that `ext-bridge --help` lists".to_owned(),
                |near| format!("did you mean \"{near}\"?"),
            );
            return Err((Some(at), format!("there is no key \"{}\"; {advice}", key.get_ref())));
        }
        if let Some((first, _)) = found.iter().find(|(_, other)| *other == name) {
            let why = format!("\"{}\" is there twice, first in line {}", key.get_ref(), first.min(&at));
            return Err((Some(at.max(*first)), why));
        }
        found.push((at, name));
    }
    let whole: toml::Table = toml::from_str(text).map_err(|e| syntax(&e))?;
    let mut options = Options::default();
    for (key, value) in whole {
        let name = key.replace('-', "_");
        let at = found.iter().find(|(_, other)| *other == name).map(|(at, _)| *at);
        let one = toml::Table::from_iter([(name, value)]);
        let one: Options = one
            .try_into()
            .map_err(|e: toml::de::Error| (at, format!("{key}: {}", one_line(e.message()))))?;
        options = options.or(one);
    }
    Ok(options)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_as_flags_or_as_words() {
        let options = parse("prefix = \"a.b\"\nnats-url = \"x\"\nmax_batch = 5\ndrain-timeout = \"5s\"\n").unwrap();
        assert_eq!(
            (options.prefix.as_deref(), options.nats_url.as_deref()),
            (Some("a.b"), Some("x"))
        );
        assert_eq!(
            (options.max_batch, options.drain_timeout.map(|s| s.0.as_secs())),
            (Some(5), Some(5))
        );
        assert!(parse("").unwrap().prefix.is_none());
    }

    #[test]
    fn what_is_wrong_has_a_line_a_name_and_a_remedy() {
        let cases = [
            ("\nprefx = \"a\"", 2, "did you mean \"prefix\"?"),
            ("config = \"a\"", 1, "no key \"config\""),
            ("\n\nloops = \"two\"", 3, "loops: invalid type"),
            ("source = \"auto\"\ndb-port = 70000", 2, "db-port: invalid value"),
            ("max-call = \"5\"", 1, "is not a length of time such as 250ms"),
            ("loops = 1\nloops = 2", 2, "duplicate key"),
            ("max-batch = 1\nmax_batch = 2", 2, "is there twice, first in line 1"),
            ("\n[nats]\nurl = 1", 2, "no key \"nats\""),
            ("\n\nprefix: a", 3, "key"),
        ];
        for (text, line, what) in cases {
            let (at, why) = parse(text).expect_err(text);
            assert!(why.contains(what) && !why.contains('\n'), "{text}: {why}");
            assert_eq!(at, Some(line), "{text}: {why}");
        }
    }
}
