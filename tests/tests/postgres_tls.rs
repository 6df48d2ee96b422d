//! The bridge's connections to Postgres by TLS: the modes of libpq, against a real server and certificates by openssl.

use std::path::Path;
use std::time::Duration;

use ext_registry_tests::certificates::Certificates;
use ext_registry_tests::postgres::{BRIDGE_ROLE, must_succeed};
use ext_registry_tests::{Bridge, Nats, Postgres, bridge, eventually};

const DATABASE: &str = "app";
const PASSWORD: &str = "pa55-w0rd";

/// A cluster with TLS by `server`: one role for each way to be let in.
fn cluster(certificates: &Certificates, server: &str) -> Postgres {
    let hba = certificates.write(
        "pg_hba.conf",
        "local all all trust\n\
         host all postgres all trust\n\
         hostssl all scram all scram-sha-256\n\
         hostssl all certified all cert\n\
         hostnossl all plain all trust\n\
         host all bridge all trust\n",
    );
    let settings = [
        "ssl = on".to_owned(),
        format!("ssl_cert_file = '{}'", certificates.file(&format!("{server}.crt"))),
        format!("ssl_key_file = '{}'", certificates.file(&format!("{server}.key"))),
        format!("ssl_ca_file = '{}'", certificates.file("ca.crt")),
        format!("hba_file = '{hba}'"),
        "password_encryption = 'scram-sha-256'".to_owned(),
        "log_connections = on".to_owned(),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let cluster = Postgres::start(&settings);
    cluster.make_database(DATABASE);
    let roles = format!(
        "create role scram login password '{PASSWORD}'; create role certified login; create role plain login;
         select ext_grant(r, 'bridge') from unnest(array['scram', 'certified', 'plain']::regrole[]) r"
    );
    must_succeed(&cluster.psql(DATABASE, &roles));
    cluster
}

/// `ext-bridge check`: its exit code, and what it says of Postgres.
fn check(nats: &Nats, cluster: &Postgres, flags: &[&str]) -> (i32, String) {
    let output = bridge::run_on(
        nats,
        cluster,
        DATABASE,
        &[&["check", "--source", "database"], flags].concat(),
        "",
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains(PASSWORD), "{text}");
    let line = text
        .lines()
        .find(|line| line.contains("postgres: ") || line.starts_with("ext-bridge: "));
    let line = line.unwrap_or_else(|| panic!("{text}")).to_owned();
    (output.status.code().expect("it ends by itself"), line)
}

/// How the last connection of a role was authorized, as the server logs it.
fn last_login(cluster: &Postgres, role: &str) -> String {
    let log = cluster.log();
    let begin = format!("connection authorized: user={role} ");
    let line = log.lines().rfind(|line| line.contains(&begin));
    line.unwrap_or_else(|| panic!("{role} never logged in:\n{log}"))
        .to_owned()
}

#[test]
fn each_mode_accepts_what_it_should_and_nothing_else() {
    let certificates = Certificates::make();
    let cluster = cluster(&certificates, "server");
    let nats = Nats::start();
    let (ca, other) = (certificates.file("ca.crt"), certificates.file("other.crt"));
    let by_name = ["--db-host", "localhost"];
    let (encrypted, open) = (Some("SSL enabled"), None);
    // Mode, authorities, by name; the role and how it comes in, or what is said.
    let accepted: [(&str, Option<&str>, bool, Option<&str>); 9] = [
        ("", None, false, encrypted),
        ("disable", None, false, open),
        ("prefer", None, false, encrypted),
        ("require", None, false, encrypted),
        ("require", Some(&ca), false, encrypted),
        ("verify-ca", Some(&ca), false, encrypted),
        ("verify-ca", Some(&ca), true, encrypted),
        ("verify-full", Some(&ca), true, encrypted),
        ("prefer", Some(&other), false, encrypted),
    ];
    let flags = |mode: &'static str, roots: Option<&str>, named: bool| {
        let mut flags: Vec<String> = Vec::new();
        if !mode.is_empty() {
            flags.extend(["--db-sslmode".to_owned(), mode.to_owned()]);
        }
        flags.extend(
            roots
                .iter()
                .flat_map(|file| ["--db-sslrootcert".to_owned(), (*file).to_owned()]),
        );
        flags.extend(by_name.iter().filter(|_| named).map(|flag| (*flag).to_owned()));
        flags
    };
    for (mode, roots, named, how) in accepted {
        let flags = flags(mode, roots, named);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let (code, line) = check(&nats, &cluster, &flags);
        assert_eq!(code, 0, "{flags:?}: {line}");
        let login = last_login(&cluster, BRIDGE_ROLE);
        assert_eq!(login.contains("SSL enabled"), how.is_some(), "{flags:?}: {login}");
    }
    let refused: [(&str, &str, bool, &str); 4] = [
        ("require", &other, false, "; nobody whom db-sslrootcert names"),
        ("verify-ca", &other, true, "; nobody whom db-sslrootcert names"),
        ("verify-full", &other, true, "; nobody whom db-sslrootcert names"),
        ("verify-full", &ca, false, "name the host as in the certificate"),
    ];
    for (mode, roots, named, said) in refused {
        let flags = flags(mode, Some(roots), named);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let (code, line) = check(&nats, &cluster, &flags);
        assert_eq!(code, 1, "{flags:?}: {line}");
        assert!(line.contains(said), "{flags:?}: {line}");
    }
}

#[test]
fn roles_come_in_by_password_by_certificate_and_without_tls() {
    let certificates = Certificates::make();
    let cluster = cluster(&certificates, "server");
    let nats = Nats::start();
    let (port, ca) = (cluster.port(), certificates.file("ca.crt"));
    let address = |role: &str, more: &str| {
        format!("postgres://{role}:{PASSWORD}@localhost:{port}/{DATABASE}?sslmode=verify-full&sslrootcert={ca}{more}")
    };
    // With channel binding the server proves that it ends this very TLS connection.
    let url = address("scram", "&channel_binding=require");
    assert_eq!(check(&nats, &cluster, &["--db-url", &url]).0, 0);
    let list = format!(
        "host=localhost port={port} dbname={DATABASE} user=scram password='{PASSWORD}' sslmode=verify-full sslrootcert='{ca}'"
    );
    assert_eq!(check(&nats, &cluster, &["--db-url", &list]).0, 0);
    let wrong = url.replace(PASSWORD, "another");
    let (code, line) = check(&nats, &cluster, &["--db-url", &wrong]);
    assert_eq!((code, line.contains("28P01")), (1, true), "{line}");

    let (cert, key) = (certificates.file("certified.crt"), certificates.file("certified.key"));
    let url = address("certified", &format!("&sslcert={cert}&sslkey={key}"));
    assert_eq!(check(&nats, &cluster, &["--db-url", &url]).0, 0);
    let (code, line) = check(&nats, &cluster, &["--db-url", &address("certified", "")]);
    assert_eq!((code, line.contains("certificate")), (1, true), "{line}");

    // Let in without TLS only: `prefer` finds out, the others do not give way.
    assert_eq!(check(&nats, &cluster, &["--db-user", "plain"]).0, 0);
    let (code, line) = check(&nats, &cluster, &["--db-user", "plain", "--db-sslmode", "require"]);
    assert_eq!((code, line.contains("no pg_hba.conf entry")), (1, true), "{line}");
    let (code, line) = check(&nats, &cluster, &["--db-user", "nobody"]);
    assert_eq!((code, line.contains("no pg_hba.conf entry")), (1, true), "{line}");
}

#[tokio::test]
async fn every_connection_of_a_running_bridge_is_protected() {
    let certificates = Certificates::make();
    // Signed by itself, and named as whom to trust: no authority of its own is needed.
    let cluster = cluster(&certificates, "own");
    let nats = Nats::start();
    let (port, own) = (cluster.port(), certificates.file("own.crt"));
    let url = format!("postgres://scram:{PASSWORD}@localhost:{port}/{DATABASE}?sslmode=verify-full&sslrootcert={own}");
    let bridge = Bridge::start_on(&nats, &cluster, DATABASE, &["--db-url", &url]);
    let session = cluster.connect(DATABASE).await;
    let of_bridge = "from pg_stat_activity a join pg_stat_ssl s using (pid) where application_name = 'ext-bridge'";
    let all = async |least: i32| {
        eventually(Duration::from_secs(20), async || {
            // The connection for the registry's series comes back when somebody asks for them.
            bridge.metrics();
            let count = session.one(&format!("select count(*)::text {of_bridge}"), &[]).await;
            if count.parse::<i32>().expect("a number") >= least {
                Ok(())
            } else {
                Err(count)
            }
        })
        .await;
        let open = session
            .one(&format!("select count(*)::text {of_bridge} and not ssl"), &[])
            .await;
        assert_eq!(open, "0");
    };
    // Decisions, reports, policies, the registry's series, the queue, the events.
    all(6).await;
    session
        .run(&format!("select pg_terminate_backend(pid) {of_bridge}"))
        .await;
    all(6).await;
    assert!(!bridge.log().contains(PASSWORD), "{}", bridge.log());
}

#[test]
fn a_server_without_tls_is_taken_where_that_is_allowed() {
    let nats = Nats::start();
    let cluster = Postgres::start(&[]);
    cluster.make_database(DATABASE);
    assert_eq!(check(&nats, &cluster, &[]).0, 0);
    let (code, line) = check(&nats, &cluster, &["--db-sslmode", "require"]);
    assert_eq!(
        (code, line.contains("server does not support TLS")),
        (1, true),
        "{line}"
    );
    // Sockets of this machine need none.
    let socket = cluster.socket_directory().display().to_string();
    let (code, line) = check(&nats, &cluster, &["--db-sslmode", "require", "--db-host", &socket]);
    assert_eq!(code, 0, "{line}");
}

#[test]
fn settings_that_cannot_be_are_refused_at_once() {
    let certificates = Certificates::make();
    let nats = Nats::start();
    let cluster = Postgres::shared();
    let file = |name: &str| certificates.file(name);
    let (ca, text) = (file("ca.crt"), certificates.write("text", "no certificate\n"));
    let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let damaged = certificates.write("damaged", damaged);
    let (missing, crt, key, other) = (
        file("missing"),
        file("certified.crt"),
        file("certified.key"),
        file("other.key"),
    );
    assert!(!Path::new(&missing).exists());
    let cases: [(&[&str], &str); 11] = [
        (&["--db-sslmode", "always"], "db-sslmode: \"always\" is not"),
        (&["--db-url", "host=h sslmode=always"], "db-sslmode: \"always\" is not"),
        (&["--db-sslmode", "verify-ca"], "name a file by db-sslrootcert"),
        (
            &["--db-sslmode", "verify-ca", "--db-sslrootcert", "system"],
            "needs db-sslmode verify-full",
        ),
        (
            &["--db-sslmode", "verify-ca", "--db-sslrootcert", &missing],
            "missing: No such file",
        ),
        (
            &["--db-sslmode", "verify-ca", "--db-sslrootcert", &text],
            "text: has no certificate",
        ),
        (
            &["--db-sslmode", "verify-ca", "--db-sslrootcert", &damaged],
            "damaged: has no certificate that can be read",
        ),
        (&["--db-sslcert", &missing, "--db-sslkey", &key], "db-sslcert: "),
        (&["--db-sslcert", &crt], "db-sslcert: its key is missing"),
        (&["--db-sslcert", &crt, "--db-sslkey", &ca], "db-sslkey: "),
        (
            &["--db-sslcert", &crt, "--db-sslkey", &other],
            "does not go with db-sslcert",
        ),
    ];
    for command in ["check", "serve"] {
        for (flags, said) in &cases {
            let output = bridge::run_on(&nats, cluster, "none", &[&[command], *flags].concat(), "");
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{flags:?}: {text}");
            assert_eq!(
                (text.lines().count(), text.contains(said)),
                (1, true),
                "{flags:?}: {text}"
            );
        }
    }
}
