//! The harness itself: what it starts works, and nothing stays behind.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use async_nats::connection::State;
use ext_registry_tests::{Nats, Postgres, Shutdown, eventually, python, wait_until};
use tokio_postgres::error::DbError;

/// The harness needs no extension for these, so that it can be judged apart from it.
const PLAIN: &[&str] = &["shared_preload_libraries = ''"];

#[tokio::test]
async fn postgres_restarts_with_its_data_and_survives_a_killed_backend() {
    let mut cluster = Postgres::start(PLAIN);
    let session = cluster.connect("postgres").await;
    session.run("create table t as select 1 as x").await;
    let before = session.backend_pid().await;

    cluster.restart(Shutdown::Fast);
    assert!(
        session.simple_query("select 1").await.is_err(),
        "the session has ended with the server"
    );
    let session = cluster.connect("postgres").await;
    assert_eq!(session.one("select x::text from t", &[]).await, "1");

    let pid = session.backend_pid().await;
    assert_ne!(pid, before);
    cluster.kill_backend(pid).await;
    assert_eq!(
        cluster
            .connect("postgres")
            .await
            .one("select x::text from t", &[])
            .await,
        "1"
    );
}

#[tokio::test]
async fn notices_are_kept() {
    let cluster = Postgres::start(PLAIN);
    let session = cluster.connect("postgres").await;
    session.run("do $$ begin raise notice 'hello'; end $$").await;
    let notices = session.take_notices();
    assert_eq!(notices.iter().map(DbError::message).collect::<Vec<_>>(), ["hello"]);
    assert_eq!(session.error_of("select 1/0").await.code().code(), "22012");
}

#[tokio::test]
async fn nats_restarts_on_its_port() {
    let mut nats = Nats::start();
    let client = nats.connect().await;
    client.flush().await.expect("connected");
    nats.stop();
    becomes(&client, |state| state != State::Connected).await;
    nats.start_again();
    becomes(&client, |state| state == State::Connected).await;
}

async fn becomes(client: &async_nats::Client, wanted: impl Fn(State) -> bool) {
    eventually(Duration::from_secs(10), async || {
        let state = client.connection_state();
        if wanted(state.clone()) { Ok(()) } else { Err(state) }
    })
    .await;
}

#[test]
fn python_has_nats_py() {
    let program = python::Program::start("import nats.micro; print('ready')", &[]);
    assert_eq!(program.log(), "ready\n");
}

/// A test process that is killed drops nothing; the reaper still ends its servers and removes its directories.
#[tokio::test]
async fn nothing_outlives_a_killed_test_process() {
    const ROLE: &str = "EXT_REGISTRY_TESTS_TO_BE_KILLED";
    if std::env::var_os(ROLE).is_some() {
        let cluster = Postgres::start(PLAIN);
        println!("\nsocket {}", cluster.socket_directory().display());
        println!("pid {}", cluster.pid());
        loop {
            std::thread::park();
        }
    }

    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "nothing_outlives_a_killed_test_process", "--nocapture"])
        .env(ROLE, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test can be started");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let (mut socket, mut pid) = (None, None);
    for line in lines {
        let line = line.expect("UTF-8");
        if let Some(path) = line.strip_prefix("socket ") {
            socket = Some(path.to_owned());
        }
        if let Some(number) = line.strip_prefix("pid ") {
            pid = Some(number.to_owned());
            break;
        }
    }
    let (socket, pid) = (socket.expect("printed before the pid"), pid.expect("the child runs"));
    let process = format!("/proc/{pid}");
    assert!(
        Path::new(&process).exists() && Path::new(&socket).exists(),
        "Postgres runs"
    );

    child.kill().expect("our own child");
    child.wait().expect("our own child");
    wait_until("Postgres has ended", Duration::from_secs(15), || {
        !Path::new(&process).exists()
    });
    wait_until("its directory is gone", Duration::from_secs(15), || {
        !Path::new(&socket).exists()
    });
}
