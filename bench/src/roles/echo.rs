//! A service that answers every request at once.

use async_nats::Client;
use futures_util::StreamExt;

use super::{OUTPUT, REPLY, SERVICE};
use crate::Failure;

pub async fn run(client: &Client) -> Result<(), Failure> {
    let mut requests = client.subscribe(format!("{SERVICE}>")).await?;
    super::say_ready(client).await?;
    while let Some(request) = requests.next().await {
        if let Some(reply) = request.reply {
            let answer = if request.subject.ends_with(".provider") {
                OUTPUT
            } else {
                REPLY
            };
            client.publish(reply, answer.into()).await?;
        }
    }
    Ok(())
}
