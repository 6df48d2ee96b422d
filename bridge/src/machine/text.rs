//! Numbers as text for headers, cheaper than the formatting machinery: every call writes some.

/// A number as text, without an allocation.
pub struct Digits([u8; 24], usize);

impl Digits {
    /// A whole number.
    pub fn of(mut number: u64) -> Self {
        let mut digits = Self([b'0'; 24], 24);
        loop {
            digits.put(b'0' + (number % 10) as u8);
            number /= 10;
            if number == 0 {
                return digits;
            }
        }
    }

    /// `number` / 1000, with three decimals.
    pub fn thousandths(number: u64) -> Self {
        let mut digits = Self::of(number / 1000);
        let whole = digits.as_str().len();
        digits.0.copy_within(24 - whole.., 20 - whole);
        digits.1 = 20 - whole;
        digits.0[20] = b'.';
        for (place, unit) in [(21, 100), (22, 10), (23, 1)] {
            digits.0[place] = b'0' + (number / unit % 10) as u8;
        }
        digits
    }

    fn put(&mut self, digit: u8) {
        self.1 -= 1;
        self.0[self.1] = digit;
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0[self.1..]).unwrap_or_default()
    }
}

/// Hexadecimal text of a fixed length.
pub fn push_hex(out: &mut String, number: u128, digits: u32) {
    for place in (0..digits).rev() {
        out.push(char::from(b"0123456789abcdef"[(number >> (place * 4) & 15) as usize]));
    }
}

#[cfg(test)]
mod tests {
    use super::{Digits, push_hex};

    #[test]
    fn numbers() {
        for number in [0, 7, 999, 1000, 1001, 123_456, 300_000_000] {
            assert_eq!(Digits::of(number).as_str(), number.to_string());
            assert_eq!(
                Digits::thousandths(number).as_str(),
                format!("{:.3}", number as f64 / 1000.0)
            );
        }
        let mut text = String::new();
        push_hex(&mut text, 0xabc, 8);
        assert_eq!(text, "00000abc");
    }
}
