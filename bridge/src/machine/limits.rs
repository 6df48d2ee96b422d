//! What a message may be: size, depth, lengths, and what `jsonb` can hold.
//!
//! One pass over the bytes, nothing is built. The scans take any bytes; syntax is judged by the parser.

/// Bounds of one message.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The whole encoded message, in bytes.
    pub message_bytes: usize,
    /// Its metadata, and its context, in bytes.
    pub metadata_bytes: usize,
    /// A service's reply, in bytes.
    pub reply_bytes: usize,
    /// Objects and arrays within each other.
    pub depth: usize,
    /// Items of one array.
    pub array_items: u32,
    /// Keys of one object.
    pub properties: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 1 << 20,
            metadata_bytes: 64 << 10,
            reply_bytes: 1 << 20,
            depth: 10,
            array_items: 1000,
            properties: 50,
        }
    }
}

/// The deepest that `depth` can be set to: the parser's own bound.
pub const MAX_DEPTH: usize = 100;

/// Checks depth and lengths of JSON text; says what is over which limit.
pub fn check_shape(text: &[u8], limits: &Limits) -> Result<(), String> {
    let mut stack = [(0_u8, 0_u32); MAX_DEPTH];
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'"' => at = end_of_string(text, at),
            open @ (b'{' | b'[') => {
                if depth >= limits.depth.min(MAX_DEPTH) {
                    return Err(format!("nested deeper than {} levels", limits.depth));
                }
                stack[depth] = (open, 0);
                depth += 1;
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' if depth > 0 => {
                let (kind, commas) = &mut stack[depth - 1];
                *commas += 1;
                if *kind == b'{' && *commas >= limits.properties {
                    return Err(format!("an object has more than {} properties", limits.properties));
                }
                if *kind == b'[' && *commas >= limits.array_items {
                    return Err(format!("an array has more than {} items", limits.array_items));
                }
            }
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// The index of the closing quote, or the last one of the text.
fn end_of_string(text: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < text.len() {
        match text[at] {
            b'"' => return at,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

/// Longest number that is handed to `jsonb`, in characters, and the largest exponent.
const MAX_NUMBER: usize = 1000;

/// A number without an exponent that is no longer than this, in characters, is a finite float.
const SURELY_FINITE: usize = 300;

/// Checks that `jsonb`, and whoever decides without Postgres, can hold valid JSON text: no U+0000, no half surrogate pairs, no
/// boundless numbers.
pub fn check_jsonb(text: &[u8]) -> Result<(), &'static str> {
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'"' => {
                let end = end_of_string(text, at);
                check_escapes(&text[at + 1..end.min(text.len())])?;
                at = end;
            }
            b'-' | b'0'..=b'9' => {
                let length = text[at..]
                    .iter()
                    .take_while(|b| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
                    .count();
                let number = &text[at..at + length];
                let exponent = number
                    .iter()
                    .position(|b| matches!(b, b'e' | b'E'))
                    .map(|e| &number[e + 1..]);
                let large = exponent.is_some_and(|e| {
                    let digits = std::str::from_utf8(e)
                        .unwrap_or("")
                        .trim_start_matches(['+', '-'])
                        .trim_start_matches('0');
                    digits.len() > 4 || digits.parse::<usize>().is_ok_and(|n| n > MAX_NUMBER)
                });
                let infinite =
                    (exponent.is_some() || length > SURELY_FINITE) && serde_json::from_slice::<f64>(number).is_err();
                if large || infinite || length > MAX_NUMBER {
                    return Err("a number is out of range");
                }
                at += length - 1;
            }
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

fn check_escapes(string: &[u8]) -> Result<(), &'static str> {
    const HALF: &str = "a string has half of a surrogate pair";
    let unit = |at: usize| -> Option<u16> {
        let hex = string.get(at + 2..at + 6)?;
        if string.get(at..at + 2)? != br"\u" {
            return None;
        }
        u16::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
    };
    let mut at = 0;
    while at < string.len() {
        if string[at] != b'\\' {
            at += 1;
            continue;
        }
        match unit(at) {
            None => at += 2,
            Some(0) => return Err("a string has U+0000"),
            Some(0xdc00..=0xdfff) => return Err(HALF),
            Some(0xd800..=0xdbff) => match unit(at + 6) {
                Some(0xdc00..=0xdfff) => at += 12,
                _ => return Err(HALF),
            },
            Some(_) => at += 6,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(text: &str) -> Result<(), String> {
        check_shape(text.as_bytes(), &Limits::default())
    }

    #[test]
    fn depth_items_and_properties() {
        assert!(shape(&format!("{}{}", "[".repeat(10), "]".repeat(10))).is_ok());
        assert!(
            shape(&format!("{}{}", "[".repeat(11), "]".repeat(11)))
                .unwrap_err()
                .contains("10 levels")
        );
        let array = |n: usize| format!("[{}]", vec!["1"; n].join(","));
        assert!(shape(&array(1000)).is_ok());
        assert!(shape(&array(1001)).unwrap_err().contains("1000 items"));
        let object = |n: usize| {
            format!(
                "{{{}}}",
                (0..n).map(|i| format!("\"{i}\":[]")).collect::<Vec<_>>().join(",")
            )
        };
        assert!(shape(&object(50)).is_ok());
        assert!(shape(&object(51)).unwrap_err().contains("50 properties"));
        assert!(shape(r#"{"a":"[[[[[[[[[[[[[[,,,\"[[["}"#).is_ok());
    }

    #[test]
    fn what_jsonb_refuses() {
        let check = |text: &str| check_jsonb(text.as_bytes());
        assert!(check(r#"{"a":"ü \\u0000 \ud83d\ude00","b":[-1.5e10,1e-300]}"#).is_ok());
        for bad in [
            r#"{"a":"\u0000"}"#,
            r#"{"\u0000":1}"#,
            r#""\ud800""#,
            r#""\ud800\u0041""#,
            r#""\udc00""#,
            r"1e1001",
            r#"{"a":-1.5E+309}"#,
            r"[1e999999999999]",
            &"9".repeat(1001),
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn any_bytes_are_safe() {
        let mut random = fastrand::Rng::with_seed(3);
        let alphabet = b"{}[]\",\\u0d8e+-19.a\xff\x00";
        for _ in 0..20_000 {
            let text: Vec<u8> = (0..random.usize(0..40))
                .map(|_| alphabet[random.usize(0..alphabet.len())])
                .collect();
            let _ = check_shape(&text, &Limits::default());
            let _ = check_jsonb(&text);
        }
    }
}
