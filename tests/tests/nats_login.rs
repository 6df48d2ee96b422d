//! How the bridge names itself to NATS, against a real nats-server that asks for it.

use ext_registry_tests::{Bridge, Nats};

#[test]
fn user_and_password() {
    let nats = Nats::start_with(&["--user", "me", "--pass", "p@ss"]);
    let at = |login: &str| format!("nats://{login}127.0.0.1:{}", nats.port());
    for flags in [
        &["--nats-url", &at("me:p%40ss@")][..],
        &["--nats-user", "me", "--nats-password", "p@ss"],
    ] {
        let bridge = Bridge::start_on_fixtures(&nats, flags);
        assert_eq!(bridge.readiness(), 200);
        assert!(
            !bridge.log().contains("p@ss") && !bridge.log().contains("p%40ss"),
            "{}",
            bridge.log()
        );
    }
    for flags in [
        &["--nats-url", &at("")][..],
        &["--nats-url", &at("me:wrong@")],
        &["--nats-user", "me", "--nats-password", "wrong"],
    ] {
        let (code, said) = Bridge::refuses_on_fixtures(&nats, flags);
        assert_eq!(code, Some(3), "{flags:?}: {said}");
        assert!(
            said.contains("authorization") && !said.contains("wrong"),
            "{flags:?}: {said}"
        );
    }
}

#[test]
fn token() {
    let nats = Nats::start_with(&["--auth", "secret"]);
    let url = format!("nats://secret@127.0.0.1:{}", nats.port());
    for flags in [&["--nats-token", "secret"][..], &["--nats-url", &url]] {
        let bridge = Bridge::start_on_fixtures(&nats, flags);
        assert!(!bridge.log().contains("secret"), "{}", bridge.log());
    }
    let (code, said) = Bridge::refuses_on_fixtures(&nats, &["--nats-token", "wrong"]);
    assert_eq!(code, Some(3), "{said}");
}

#[test]
fn settings_that_cannot_be() {
    let nats = Nats::start();
    for (flags, named) in [
        (&["--nats-user", "me"][..], "nats-password"),
        (&["--nats-creds", "/nowhere/x.creds"], "/nowhere/x.creds"),
        (&["--nats-tls-ca", "/nowhere/ca.pem"], "/nowhere/ca.pem"),
        (&["--nats-tls-cert", "/nowhere/c.pem"], "nats-tls-key"),
        (&["--nats-nkey-seed", "SUgarbage"], "nats-nkey-seed"),
        (&["--nats-url", "nats://a:1@127.0.0.1,nats://b:2@127.0.0.2"], "nats-url"),
    ] {
        let (code, said) = Bridge::refuses_on_fixtures(&nats, flags);
        assert_eq!(code, Some(2), "{flags:?}: {said}");
        assert!(
            said.contains(named) && said.trim().lines().count() == 1,
            "{flags:?}: {said}"
        );
    }
}
