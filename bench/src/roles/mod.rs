//! The processes beside the one that measures, all of this program: a service, a relay, and somebody who calls.

mod echo;
mod flood;
pub mod load;
mod mute;
mod relay;

use async_nats::Client;
use clap::Subcommand;

use crate::Failure;

/// Where the service listens, followed by the extension's id.
pub const SERVICE: &str = "bench.service.";
/// Where the relay listens, followed by an id too.
pub const RELAY: &str = "bench.relay.";
/// The same for the relay with headers.
pub const RELAY_WITH_HEADERS: &str = "bench.relay_with_headers.";

/// A request of about 300 bytes: what the bridge is asked to invoke, and what the relay hands on.
pub const REQUEST: &str = r#"{"tenant_id":"t2","trace_id":"0af7651916cd43dd8448eb211c80319c","request_id":"r-0123456789","payload":{"message_id":"m-0123456789","message_type":"chat","payload":"The quick brown fox jumps over the lazy dog, again and again."},"metadata":{"channel":"web","language":"en","session_id":"s-0123456789"}}"#;
/// What the service answers: a pre-processor's reply.
pub const REPLY: &str = r#"{"payload":{"message_id":"m-0123456789","message_type":"chat","payload":"the quick brown fox jumps over the lazy dog, again and again."},"metadata":{"normalized":true}}"#;
/// What it answers as a provider.
pub const OUTPUT: &str =
    r#"{"output":{"text":"the quick brown fox jumps over the lazy dog, again and again."},"usage":{"tokens":16}}"#;
/// The same request for a pipeline.
pub const ROUTE: &str = r#"{"tenant_id":"t2","policy_id":"stages","trace_id":"0af7651916cd43dd8448eb211c80319c","request_id":"r-0123456789","message":{"message_id":"m-0123456789","message_type":"chat","payload":"The quick brown fox jumps over the lazy dog, again and again."},"metadata":{"channel":"web","language":"en","session_id":"s-0123456789"}}"#;
/// How its answer begins where all went well.
pub const ROUTED: &str = r#"{"ok":true,"#;

/// What this process is to be.
#[derive(Clone, Debug, Subcommand)]
pub enum Role {
    /// A service that answers at once
    #[command(hide = true)]
    Echo { url: String },
    /// One more request and reply for each request, and nothing else
    #[command(hide = true)]
    Relay {
        url: String,
        /// Where it listens, followed by the extension's id
        subject: String,
        /// With as many headers as the bridge adds
        #[arg(long)]
        headers: bool,
    },
    /// A service that takes every request and answers none
    #[command(hide = true)]
    Mute { url: String },
    /// Makes calls that nobody answers, and prints how many have ended
    #[command(hide = true)]
    Flood {
        url: String,
        /// Followed by the extension's id
        subject: String,
        calls: u64,
        in_flight: usize,
        /// Of a request
        bytes: usize,
    },
    /// Calls for a while and prints what came of it
    #[command(hide = true)]
    Load {
        url: String,
        /// Followed by the extension's id, unless it is for pipelines
        subject: String,
        in_flight: usize,
        seconds: u64,
        /// Requests, one after the other, that make a call
        #[arg(long, default_value_t = 1)]
        steps: usize,
        /// Asks for a pipeline
        #[arg(long)]
        pipeline: bool,
    },
}

impl Role {
    pub fn play(&self) -> Result<(), Failure> {
        // One thread: with more, much of the time is spent on waking each other.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            match self {
                Self::Echo { url } => echo::run(&connect(url).await?).await,
                Self::Mute { url } => mute::run(&connect(url).await?).await,
                Self::Flood {
                    url,
                    subject,
                    calls,
                    in_flight,
                    bytes,
                } => flood::run(connect(url).await?, subject, *calls, *in_flight, *bytes).await,
                Self::Relay { url, subject, headers } => relay::run(connect(url).await?, subject, *headers).await,
                Self::Load {
                    url,
                    subject,
                    in_flight,
                    seconds,
                    steps,
                    pipeline,
                } => {
                    let what = load::What::new(subject, *steps, *pipeline);
                    load::run(connect(url).await?, what, *in_flight, *seconds).await
                }
            }
        })
    }
}

async fn connect(url: &str) -> Result<Client, Failure> {
    Ok(async_nats::ConnectOptions::new()
        .client_capacity(65_536)
        .connect(url)
        .await?)
}

/// What a process prints when its subscription is known to the server.
pub const READY: &str = "ready";

async fn say_ready(client: &Client) -> Result<(), Failure> {
    client.flush().await?;
    println!("{READY}");
    Ok(())
}
