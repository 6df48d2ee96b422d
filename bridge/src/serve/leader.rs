//! One bridge of many does what must be done once: the one that holds an advisory lock of Postgres.
//!
//! Promise: no two lead at the same time. The lock belongs to the session, so the lead ends with its connection, which must
//! go straight to the server.

use tokio_postgres::Client;

/// The lead, as far as one connection has it.
pub struct Lead {
    key: i64,
    held: bool,
}

impl Lead {
    /// A lead that a new connection does not have yet.
    pub const fn new(key: i64) -> Self {
        Self { key, held: false }
    }

    /// Takes the lead if nobody has it; says whether this connection has it. Does not wait.
    pub async fn try_to(&mut self, client: &Client) -> Result<bool, tokio_postgres::Error> {
        if !self.held {
            let sql = "select pg_catalog.pg_try_advisory_lock($1)";
            self.held = client.query_one(sql, &[&self.key]).await?.try_get(0)?;
        }
        Ok(self.held)
    }
}

/// Why there is nothing to do on a connection.
pub enum End {
    /// It is to a standby: the primary's bridges do it.
    Standby,
    /// The settings name another database, another NATS, or another login.
    Moved,
}

/// A key for a name: FNV-1a, the same in every version.
pub fn key_of(name: &str) -> i64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
        .cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_fnv() {
        assert_eq!(key_of("").cast_unsigned(), 0xcbf2_9ce4_8422_2325);
        assert_eq!(key_of("foobar").cast_unsigned(), 0x8594_4171_f739_67e8);
    }
}
