//! A way to a server of this machine on which connections can be held up and cut, one at a time.
//!
//! Owns a port and the connections made through it. A connection is known by what its client has said: a bridge's connection
//! for outcomes is the one that has prepared `ext_report_many`. What is held up is not lost: it goes on when the connection is
//! opened again, and is gone when it is cut. It runs on a thread of its own, so that a test may block.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

use crate::ports;

/// So much of what a client says is remembered, in bytes.
const REMEMBERED: usize = 64 << 10;

/// What passes on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Everything.
    Open,
    /// What the client says; not what the server does.
    AnswersHeld,
    /// Nothing, and neither side can tell.
    Held,
    /// Nothing ever again: both sides see the end.
    Cut,
}

#[derive(Debug)]
struct Connection {
    said: Mutex<Vec<u8>>,
    flow: watch::Sender<Flow>,
}

impl Connection {
    fn remember(&self, bytes: &[u8]) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let room = REMEMBERED.saturating_sub(said.len());
        said.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn has_said(&self, phrase: &str) -> bool {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.windows(phrase.len()).any(|window| window == phrase.as_bytes())
    }
}

type Connections = Arc<Mutex<Vec<Arc<Connection>>>>;

/// See the module; ends with all its connections when dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    connections: Connections,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// A way to `port` of 127.0.0.1.
    pub fn to(port: u16) -> Self {
        let own = ports::free();
        let connections = Connections::default();
        let (end, ended) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let theirs = Arc::clone(&connections);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, own))
                    .await
                    .expect("a free port");
                ready.send(()).expect("it is waited for");
                tokio::select! {
                    () = serve(listener, port, theirs) => {}
                    _ = ended => {}
                }
            });
        });
        is_ready.recv().expect("the proxy listens");
        Self {
            port: own,
            connections,
            end: Some(end),
            thread: Some(thread),
        }
    }

    /// Where it listens on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Says what passes on the connections that stand now and whose client has said this.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn set(&self, said: &str, flow: Flow) {
        let connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let mut any = false;
        for connection in connections.iter().filter(|connection| connection.has_said(said)) {
            any = true;
            connection.flow.send_replace(flow);
        }
        assert!(any, "no connection has said {said}");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It panics where a test has failed already.
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, port: u16, connections: Connections) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            return;
        };
        let connections = Arc::clone(&connections);
        tokio::spawn(async move {
            // Where nobody listens the client sees the end.
            let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else {
                return;
            };
            let connection = Arc::new(Connection {
                said: Mutex::default(),
                flow: watch::channel(Flow::Open).0,
            });
            let all = || connections.lock().unwrap_or_else(PoisonError::into_inner);
            all().push(Arc::clone(&connection));
            pass_on(client, server, &connection).await;
            all().retain(|other| !Arc::ptr_eq(other, &connection));
        });
    }
}

/// Until either side ends it, or it is cut. The first end ends both directions, as the end of a process does.
async fn pass_on(client: TcpStream, server: TcpStream, connection: &Connection) {
    // Without a wait for more: what is measured is not this.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((client_in, client_out), (server_in, server_out)) = (client.into_split(), server.into_split());
    let mut flow = connection.flow.subscribe();
    tokio::select! {
        () = pump(client_in, server_out, connection.flow.subscribe(), Some(connection), &[Flow::Open, Flow::AnswersHeld]) => {}
        () = pump(server_in, client_out, connection.flow.subscribe(), None, &[Flow::Open]) => {}
        _ = flow.wait_for(|flow| *flow == Flow::Cut) => {}
    }
}

async fn pump(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut flow: watch::Receiver<Flow>,
    remember: Option<&Connection>,
    passing: &[Flow],
) {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let Ok(count @ 1..) = from.read(&mut bytes).await else {
            return;
        };
        if let Some(connection) = remember {
            connection.remember(&bytes[..count]);
        }
        let passes = flow.wait_for(|flow| passing.contains(flow)).await.is_ok();
        if !passes || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
