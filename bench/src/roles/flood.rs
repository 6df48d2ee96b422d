//! Somebody who makes calls that nobody answers, so many at a time, and tells how many have ended.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_nats::{Client, Request};
use tokio::task::JoinSet;

use crate::Failure;
use crate::database::EXTENSIONS;

/// Calls between two lines.
const TOLD: u64 = 10_000;
/// Longer than the bridge lets a call take.
const PATIENCE: Duration = Duration::from_mins(1);
/// What the bridge answers.
const ENDED: &str = r#""code":"extension_timeout""#;

/// A request of so many bytes.
fn request(bytes: usize) -> String {
    let empty = r#"{"tenant_id":"t2","payload":{"text":""}}"#;
    empty.replace(
        r#""text":"""#,
        &format!(r#""text":"{}""#, "x".repeat(bytes.saturating_sub(empty.len()))),
    )
}

/// Makes `calls` in all, and prints how many have ended, each time that so many more have.
pub async fn run(client: Client, subject: &str, calls: u64, in_flight: usize, bytes: usize) -> Result<(), Failure> {
    let body = bytes::Bytes::from(request(bytes));
    let (begun, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut callers = JoinSet::new();
    for _ in 0..in_flight {
        let (client, body, subject) = (client.clone(), body.clone(), subject.to_owned());
        let (begun, ended) = (Arc::clone(&begun), Arc::clone(&ended));
        callers.spawn(async move {
            loop {
                let number = begun.fetch_add(1, Relaxed);
                if number >= calls {
                    return Ok(());
                }
                let to = format!("{subject}{}", number % u64::from(EXTENSIONS) + 1);
                let request = Request::new().payload(body.clone()).timeout(Some(PATIENCE));
                let reply = client.send_request(to, request).await.map_err(|e| e.to_string())?;
                if !String::from_utf8_lossy(&reply.payload).contains(ENDED) {
                    return Err(String::from_utf8_lossy(&reply.payload).into_owned());
                }
                let ended = ended.fetch_add(1, Relaxed) + 1;
                if ended.is_multiple_of(TOLD) {
                    let _ = writeln!(std::io::stdout(), "{ended}"); // who does not read it does not want it
                }
            }
        });
    }
    while let Some(done) = callers.join_next().await {
        done??;
    }
    Ok(())
}
