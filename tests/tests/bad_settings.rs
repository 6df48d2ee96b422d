//! Settings that cannot be: the right exit code, and one line that names what is wrong and what to do about it.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::time::Duration;

use ext_registry_tests::process::Directory;
use ext_registry_tests::{Bridge, Nats, Postgres, bridge, wait_until};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn values_that_cannot_be() {
    let nats = Nats::start();
    let cases: [(&[&str], &[&str]); 22] = [
        (
            &["--source", "oracle"],
            &["source", "\"oracle\"", "database, fixtures or auto"],
        ),
        (&["--source", ""], &["source", "database, fixtures or auto"]),
        (&["--prefix", "a b"], &["prefix", "\"a b\""]),
        (&["--prefix", ""], &["prefix"]),
        (&["--prefix", "a.*"], &["prefix", "a.*"]),
        (&["--log-level", "verbose"], &["log-level", "\"verbose\"", "warn, info"]),
        (&["--log-level", "ext_bridge=loud"], &["log-level", "ext_bridge=loud"]),
        (&["--log-format", "xml"], &["log-format", "\"xml\"", "text or json"]),
        (&["--nats-url", ""], &["nats-url"]),
        (&["--nats-user", "me"], &["nats-user", "nats-password"]),
        (
            &["--http-addr", "nowhere"],
            &["http-addr", "\"nowhere\"", "127.0.0.1:9464"],
        ),
        (&["--grpc-addr", "127.0.0.1:99999"], &["grpc-addr", "99999"]),
        (&["--db-sslmode", "maybe"], &["db-sslmode", "\"maybe\"", "verify-full"]),
        (&["--db-url", "mysql://x"], &["db-url"]),
        (&["--loops", "0"], &["loops", "\"0\"", "between 1 and 64"]),
        (&["--loops", "two"], &["--loops", "two"]),
        (&["--max-batch", "0"], &["max-batch", "\"0\"", "between 1 and"]),
        (
            &["--retry-budget=-0.5"],
            &["retry-budget", "\"-0.5\"", "between 0 and 10"],
        ),
        (&["--max-call", "5"], &["--max-call", "250ms, 30s"]),
        (&["--max-message-bytes", "1"], &["max-message-bytes", "between 1024"]),
        (&["--prefix", "a", "--prefix", "b"], &["--prefix", "multiple times"]),
        (&["--prefx", "a"], &["--prefx", "--prefix"]),
    ];
    for (flags, named) in cases {
        // A flag that is there already could not be given again.
        let own: Vec<&str> = flags.iter().filter(|flag| flag.starts_with("--")).copied().collect();
        let (code, said) = if own.iter().any(|flag| ["--http-addr", "--grpc-addr"].contains(flag)) {
            alone(flags)
        } else {
            Bridge::refuses_on_fixtures(&nats, flags)
        };
        assert_eq!(code, Some(2), "{flags:?}: {said}");
        for part in named {
            assert!(said.contains(part), "{flags:?} does not say {part}: {said}");
        }
        assert!(!said.contains("panicked"), "{flags:?}: {said}");
    }
    let (code, said) = alone(&["--http-addr", "127.0.0.1:9464", "--grpc-addr", "localhost:9464"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("grpc-addr") && said.contains("http-addr") && said.lines().count() == 1,
        "{said}"
    );
}

fn alone(flags: &[&str]) -> (Option<i32>, String) {
    let output = bridge::run_alone(&[&["serve"], flags].concat());
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn settings_files_that_cannot_be() {
    let nats = Nats::start();
    let directory = Directory::new("settings-", None);
    let path = directory.path().join("bad.toml");
    let name = path.to_str().expect("UTF-8");
    let cases = [
        (
            "\nprefx = \"a\"\n",
            "line 2: there is no key \"prefx\"; did you mean \"prefix\"?",
        ),
        (
            "loops = 1\n\nmax-batch = \"many\"\n",
            "line 3: max-batch: invalid type: string \"many\", expected usize",
        ),
        ("db_port = 70000\n", "line 1: db_port: "),
        (
            "drain-timeout = \"soon\"\n",
            "line 1: drain-timeout: \"soon\" is not a length of time such as 250ms",
        ),
        ("[nats]\nurl = \"x\"\n", "line 1: there is no key \"nats\""),
        ("loops = 1\nloops = 2\n", "line 2: duplicate key"),
        (
            "max-batch = 1\nmax_batch = 2\n",
            "line 2: \"max_batch\" is there twice, first in line 1",
        ),
        ("source: auto\n", "line 1: "),
        ("prefix = \"a\n", "line 1: "),
    ];
    for (text, named) in cases {
        std::fs::write(&path, text).expect("our own directory");
        let (code, said) = Bridge::refuses_on_fixtures(&nats, &["--config", name]);
        assert_eq!((code, said.trim_end().lines().count()), (Some(2), 1), "{text}: {said}");
        assert!(said.contains(&format!("{name}, {named}")), "{text}: {said}");
    }
    let gone = directory.path().join("gone.toml");
    for missing in [gone.to_str().expect("UTF-8"), directory.path().to_str().expect("UTF-8")] {
        let (code, said) = Bridge::refuses_on_fixtures(&nats, &["--config", missing]);
        assert_eq!((code, said.trim_end().lines().count()), (Some(2), 1), "{said}");
        assert!(said.contains(missing) && said.contains("--config"), "{said}");
    }
    // Not UTF-8.
    std::fs::write(&path, b"prefix = \"\xff\"\n").expect("our own directory");
    let (code, said) = Bridge::refuses_on_fixtures(&nats, &["--config", name]);
    assert_eq!((code, said.trim_end().lines().count()), (Some(2), 1), "{said}");
}

#[test]
fn a_port_that_is_taken() {
    let nats = Nats::start();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    for (flag, what) in [("--http-addr", "HTTP"), ("--grpc-addr", "gRPC")] {
        let other = if flag == "--http-addr" {
            "--grpc-addr"
        } else {
            "--http-addr"
        };
        let flags = [
            flag,
            &address,
            other,
            "127.0.0.1:0",
            "--source",
            "fixtures",
            "--nats-url",
            &nats.url(),
        ];
        let (code, said) = alone(&flags);
        assert_eq!((code, said.lines().count()), (Some(5), 1), "{said}");
        for part in [&*address, what, "in use", flag] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}

#[test]
fn variables_that_nobody_knows_are_named() {
    let nats = Nats::start();
    let variables = [
        ("EXT_BRIDGE_PREFX", OsStr::new("x")),
        ("EXT_BRIDGE_ZZZ", OsStr::new("s3cret")),
    ];
    let bridge = Bridge::launch_on_fixtures(&nats, &[], &variables).ready();
    let log = bridge.log();
    assert!(
        log.contains("EXT_BRIDGE_PREFX is not known and has no effect; did you mean EXT_BRIDGE_PREFIX?"),
        "{log}"
    );
    assert!(
        log.contains("EXT_BRIDGE_ZZZ is not known") && !log.contains("s3cret"),
        "{log}"
    );
    // A known one with a wrong value is refused as its flag is.
    let wrong = [("EXT_BRIDGE_LOOPS", OsStr::new("many"))];
    let (code, said) = Bridge::launch_on_fixtures(&nats, &[], &wrong).ends();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--loops") && said.contains("many"), "{said}");
}

#[test]
fn an_image_that_cannot_be_written_is_said_and_stops_nothing() {
    let nats = Nats::start();
    let database = Postgres::shared().database();
    database.load_fixtures();
    // Below a file: not even root can write there.
    let directory = Directory::new("image-", None);
    let file = directory.path().join("file");
    std::fs::write(&file, "").expect("our own directory");
    let image = file.join("registry.image");
    let flags = ["--image", image.to_str().expect("UTF-8")];
    let bridge = Bridge::start_auto(&nats, database.cluster(), database.name(), &flags);
    wait_until("it is said", SOON, || {
        let log = bridge.log();
        log.lines()
            .any(|line| line.contains("image of the registry cannot be kept") && line.contains(flags[1]))
    });
    assert_eq!(bridge.readiness(), 200);
}
