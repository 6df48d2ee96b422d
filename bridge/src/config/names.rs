//! Names that nobody knows, and which one may have been meant.

use std::collections::BTreeSet;

use clap::Command;

/// The known name that is most like this one, if one is.
pub fn nearest(name: &str, known: impl IntoIterator<Item = String>) -> Option<String> {
    let near = known.into_iter().map(|known| (strsim::jaro(name, &known), known));
    near.filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// Variables `EXT_BRIDGE_*` of the environment that are none of this command's, each with what may have been meant.
pub fn unknown_variables(command: &Command) -> Vec<(String, Option<String>)> {
    let known: BTreeSet<String> = command
        .get_arguments()
        .filter_map(|argument| argument.get_env()?.to_str().map(str::to_owned))
        .collect();
    let set = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    set.filter(|name| name.starts_with("EXT_BRIDGE_") && !known.contains(name))
        .map(|name| {
            let near = nearest(&name, known.iter().cloned());
            (name, near)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_alike() {
        let known = || ["prefix", "nats-url", "loops"].map(str::to_owned);
        assert_eq!(nearest("prefx", known()).as_deref(), Some("prefix"));
        assert_eq!(nearest("nats_url", known()).as_deref(), Some("nats-url"));
        assert_eq!(nearest("zzz", known()), None);
    }
}
