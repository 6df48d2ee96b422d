//! A service that takes every request and answers none.

use async_nats::Client;
use futures_util::StreamExt;

use super::SERVICE;
use crate::Failure;

pub async fn run(client: &Client) -> Result<(), Failure> {
    let mut requests = client.subscribe(format!("{SERVICE}>")).await?;
    super::say_ready(client).await?;
    while requests.next().await.is_some() {}
    Ok(())
}
