//! A Postgres that does not let the bridge in: one clear line, the right exit code, and no end of trying where it serves.

use std::time::Duration;

use ext_registry_tests::postgres::must_succeed;
use ext_registry_tests::process::{Directory, Unprivileged};
use ext_registry_tests::{Bridge, Nats, Postgres, bridge, eventually, ports};

const DATABASE: &str = "app";
const WRONG: &str = "wr0ng-secret";

#[tokio::test]
async fn what_is_wrong_is_said_in_one_line_and_tried_again() {
    let directory = Directory::new("hba-", Unprivileged::needed());
    let hba = directory.path().join("pg_hba.conf");
    let rules = "local all all trust\nhost all postgres all trust\nhost all secret all scram-sha-256\n\
                 host all bridge all trust\nhost all absent all trust\n";
    std::fs::write(&hba, rules).expect("our own directory");
    let cluster = Postgres::start(&[&format!("hba_file = '{}'", hba.display())]);
    cluster.make_database(DATABASE);
    let roles =
        "create role secret login password 'right'; select ext_grant('secret', 'bridge'); create role outside login;
                 create database bare";
    for statement in roles.split(';') {
        must_succeed(&cluster.psql(DATABASE, statement));
    }
    let nats = Nats::start();
    let nowhere = ports::free().to_string();
    let cases: [(&str, &[&str], &str); 7] = [
        (
            "wrong password",
            &["--db-user", "secret", "--db-password", WRONG],
            "password authentication failed for user \"secret\"",
        ),
        ("no password", &["--db-user", "secret"], "password missing"),
        (
            "no database",
            &["--db-name", "none"],
            "database \"none\" does not exist",
        ),
        ("no role", &["--db-user", "absent"], "role \"absent\" does not exist"),
        ("not allowed", &["--db-user", "outside"], "no pg_hba.conf entry"),
        ("unreachable", &["--db-port", &nowhere], "refused"),
        (
            "no extension",
            &["--db-name", "bare"],
            "run CREATE EXTENSION ext_registry",
        ),
    ];
    for (what, flags, said) in cases {
        let arguments = [&["check", "--source", "database"], flags].concat();
        let output = bridge::run_on(&nats, &cluster, DATABASE, &arguments, "");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{what}: {text}");
        let failures: Vec<&str> = text.lines().filter(|line| line.starts_with("FAIL  ")).collect();
        assert_eq!(failures.len(), 1, "{what}: {text}");
        assert!(
            failures[0].starts_with("FAIL  postgres: ") && failures[0].contains(said),
            "{what}: {text}"
        );
        assert!(!text.contains(WRONG), "{what}: {text}");

        let arguments = [&["invoke", "x", "--source", "database"], flags].concat();
        let output = bridge::run_on(&nats, &cluster, DATABASE, &arguments, "{\"payload\": {}}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{what}: {text}");
        assert_eq!((text.lines().count(), text.contains(said)), (1, true), "{what}: {text}");
    }

    // A bridge that serves tries again: what is put right lets it in, without a restart.
    let flags = ["--source", "database", "--db-user", "secret", "--db-password", WRONG];
    let bridge = Bridge::launch_auto(&nats, &cluster, DATABASE, &flags);
    let soon = Duration::from_secs(20);
    eventually(soon, async || {
        let log = bridge.log();
        let said = log.lines().any(|line| {
            line.contains("no connection to Postgres") && line.contains("password authentication failed for user")
        });
        if said { Ok(()) } else { Err(log) }
    })
    .await;
    assert_eq!(bridge.readiness(), 503);
    let session = cluster.connect(DATABASE).await;
    session.run(&format!("alter role secret password '{WRONG}'")).await;
    eventually(soon, async || match bridge.readiness() {
        200 => Ok(()),
        other => Err(other),
    })
    .await;
    assert!(!bridge.log().contains(WRONG), "{}", bridge.log());
}
