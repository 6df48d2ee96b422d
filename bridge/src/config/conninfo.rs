//! The `ssl*` parts of a Postgres address, which tokio-postgres does not know: taken out of it, and kept.

use super::unescaped;

/// What an address says about TLS.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Ssl {
    /// `sslmode`.
    pub mode: Option<String>,
    /// `sslrootcert`.
    pub root: Option<String>,
    /// `sslcert`.
    pub cert: Option<String>,
    /// `sslkey`.
    pub key: Option<String>,
}

impl Ssl {
    /// Keeps a value, if it is one of these.
    fn take(&mut self, key: &str, value: &str) -> bool {
        let place = match key {
            "sslmode" => &mut self.mode,
            "sslrootcert" => &mut self.root,
            "sslcert" => &mut self.cert,
            "sslkey" => &mut self.key,
            _ => return false,
        };
        *place = Some(value.to_owned());
        true
    }
}

/// The address without them, and them. What cannot be read is left in, for the library to refuse.
pub fn split(address: &str) -> (String, Ssl) {
    let mut ssl = Ssl::default();
    let url = address.starts_with("postgres://") || address.starts_with("postgresql://");
    let rest = if url {
        from_url(address, &mut ssl)
    } else {
        from_list(address, &mut ssl)
    };
    (rest, ssl)
}

fn from_url(address: &str, ssl: &mut Ssl) -> String {
    let Some((before, query)) = address.split_once('?') else {
        return address.to_owned();
    };
    let kept: Vec<&str> = query
        .split('&')
        .filter(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            !ssl.take(key, &unescaped(value))
        })
        .collect();
    if kept.is_empty() {
        before.to_owned()
    } else {
        format!("{before}?{}", kept.join("&"))
    }
}

/// `key = value` or `key = 'value'`, with backslashes before quotes and backslashes.
fn from_list(address: &str, ssl: &mut Ssl) -> String {
    let mut kept = String::new();
    let mut rest = address.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let after = after.trim_start();
        let (value, length) = value(after);
        if !ssl.take(key.trim(), &value) {
            kept.push_str(key.trim());
            kept.push('=');
            kept.push_str(&after[..length]);
            kept.push(' ');
        }
        rest = after[length..].trim_start();
    }
    kept.push_str(rest);
    kept.trim_end().to_owned()
}

/// The value at the beginning of a text, and how many bytes it takes there.
fn value(text: &str) -> (String, usize) {
    let quoted = text.starts_with('\'');
    let mut out = String::new();
    let mut chars = text.char_indices().skip(usize::from(quoted));
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => out.extend(chars.next().map(|(_, c)| c)),
            '\'' if quoted => return (out, at + 1),
            c if !quoted && c.is_whitespace() => return (out, at),
            c => out.push(c),
        }
    }
    (out, text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_tls_is_taken_out() {
        let verified = Ssl {
            mode: Some("verify-full".to_owned()),
            root: Some("/a b/ca.pem".to_owned()),
            ..Ssl::default()
        };
        let cases = [
            ("postgres://u:p@h/d", "postgres://u:p@h/d", Ssl::default()),
            (
                "postgres://u:p@h/d?sslmode=verify-full&sslrootcert=%2Fa%20b/ca.pem",
                "postgres://u:p@h/d",
                verified.clone(),
            ),
            (
                "postgresql://h/d?connect_timeout=3&sslmode=verify-full&sslrootcert=/a b/ca.pem&options=x",
                "postgresql://h/d?connect_timeout=3&options=x",
                verified.clone(),
            ),
            (
                r"host=h sslmode = verify-full password='a\'b \\' sslrootcert='/a b/ca.pem' user=u",
                r"host=h password='a\'b \\' user=u",
                verified,
            ),
            ("nonsense", "nonsense", Ssl::default()),
            ("host='open", "host='open", Ssl::default()),
        ];
        for (address, rest, ssl) in cases {
            assert_eq!(split(address), (rest.to_owned(), ssl), "{address}");
        }
    }
}
