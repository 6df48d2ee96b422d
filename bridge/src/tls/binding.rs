//! What binds a SCRAM log-in to its TLS connection: the hash of the server's certificate (RFC 5929, `tls-server-end-point`).

use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};

/// The hash, by the algorithm of the certificate's signature; `None` where the RFC defines none.
pub fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let algorithm = hash_of(signature_algorithm(certificate)?)?;
    Some(digest(algorithm, certificate).as_ref().to_vec())
}

/// Signature algorithms as object identifiers in DER. MD5 and SHA-1 count as SHA-256.
fn hash_of(oid: &[u8]) -> Option<&'static Algorithm> {
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA_SHA1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01];
    const ECDSA_SHA2: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];
    let (last, family) = oid.split_last()?;
    match (family, last) {
        (RSA, 4 | 5 | 11) | (ECDSA_SHA2, 2) => Some(&SHA256),
        (RSA, 12) | (ECDSA_SHA2, 3) => Some(&SHA384),
        (RSA, 13) | (ECDSA_SHA2, 4) => Some(&SHA512),
        _ if oid == ECDSA_SHA1 => Some(&SHA256),
        _ => None,
    }
}

/// `Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { OBJECT IDENTIFIER, .. }, .. }`
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (whole, _) = element(certificate, 0x30)?;
    let (_, after) = element(whole, 0x30)?;
    let (algorithm, _) = element(after, 0x30)?;
    Some(element(algorithm, 0x06)?.0)
}

/// The content of a DER element with this tag, and what comes after it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = bytes.split_first()?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            let length = digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit));
            (length, rest)
        }
        _ => return None,
    };
    (*found == tag).then(|| rest.split_at_checked(length)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate as far as it is looked at.
    fn certificate(oid: &[u8]) -> Vec<u8> {
        let wrap = |tag: u8, content: &[u8]| {
            let length = u16::try_from(content.len()).unwrap().to_be_bytes();
            [&[tag, 0x82, length[0], length[1]], content].concat()
        };
        let body = [wrap(0x30, &[0; 300]), wrap(0x30, &wrap(0x06, oid))].concat();
        wrap(0x30, &body)
    }

    #[test]
    fn the_hash_is_that_of_the_signature() {
        let cases: [(&[u8], Option<usize>); 6] = [
            (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 5], Some(32)),
            (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 11], Some(32)),
            (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 13], Some(64)),
            (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 3], Some(48)),
            (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01], Some(32)),
            // Ed25519: the RFC says nothing.
            (&[0x2b, 0x65, 0x70], None),
        ];
        for (oid, length) in cases {
            let found = end_point(&certificate(oid)).map(|hash| hash.len());
            assert_eq!(found, length, "{oid:x?}");
        }
    }

    #[test]
    fn what_is_cut_short_has_none() {
        let whole = certificate(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 2]);
        for length in 0..whole.len() {
            assert_eq!(end_point(&whole[..length]), None, "{length}");
        }
    }
}
