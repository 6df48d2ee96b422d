//! What a bridge would be without anything to do: a request to the service for every request, and its reply back. Written as
//! one does with the library, a task and a `request` per call.

use async_nats::Client;
use futures_util::StreamExt;

use super::{RELAY, SERVICE};
use crate::Failure;

pub async fn run(client: Client) -> Result<(), Failure> {
    let mut requests = client.subscribe(format!("{RELAY}*")).await?;
    super::say_ready(&client).await?;
    while let Some(request) = requests.next().await {
        let client = client.clone();
        tokio::spawn(async move {
            let id = request.subject.strip_prefix(RELAY).unwrap_or_default();
            let answer = client.request(format!("{SERVICE}{id}"), request.payload).await;
            // No answer, no reply: the caller counts it as an error.
            if let (Some(reply), Ok(answer)) = (request.reply, answer) {
                let _ = client.publish(reply, answer.payload).await;
            }
        });
    }
    Ok(())
}
