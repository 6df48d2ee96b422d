//! Passwords from `PGPASSFILE` or `~/.pgpass`.

use std::path::PathBuf;

/// The password of the first line that fits.
pub fn look_up(host: &str, port: u16, database: &str, user: &str) -> Option<String> {
    let path = match std::env::var_os("PGPASSFILE") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".pgpass"),
    };
    let text = std::fs::read_to_string(path).ok()?;
    find(&text, [host, &port.to_string(), database, user])
}

fn find(text: &str, wanted: [&str; 4]) -> Option<String> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = split(line);
        let [a, b, c, d, password] = fields.as_slice() else {
            return None;
        };
        let fits = [a, b, c, d]
            .iter()
            .zip(wanted)
            .all(|(field, value)| *field == "*" || *field == value);
        fits.then(|| password.clone())
    })
}

/// Fields between colons; a backslash takes the meaning from the next character.
fn split(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ':' if fields.len() < 5 => fields.push(String::new()),
            '\\' => fields
                .last_mut()
                .unwrap_or_else(|| unreachable!("never empty"))
                .extend(chars.next()),
            c => fields.last_mut().unwrap_or_else(|| unreachable!("never empty")).push(c),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_fits() {
        let text = "# comment\nother:5432:*:*:no\n*:5432:beam\\:line:me:se\\:cr\\\\et\n*:*:*:*:any";
        assert_eq!(
            find(text, ["h", "5432", "beam:line", "me"]).as_deref(),
            Some("se:cr\\et")
        );
        assert_eq!(find(text, ["h", "1", "x", "y"]).as_deref(), Some("any"));
        assert_eq!(find("broken", ["h", "1", "x", "y"]), None);
    }
}
