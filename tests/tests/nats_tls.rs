//! The bridge's connection to NATS by TLS, with certificates of its own, nkeys and JWT, against a real nats-server. What is
//! refused is one line with what can be done about it.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use ext_registry_tests::certificates::Certificates;
use ext_registry_tests::process::Directory;
use ext_registry_tests::{Bridge, Nats, wait_until};
use nkeys::KeyPair;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

/// A server with the certificate `server`, for localhost. `more` goes into its `tls` block.
fn server(certificates: &Certificates, more: &str) -> Nats {
    let configuration = format!(
        "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\" {more} }}",
        certificates.file("server.crt"),
        certificates.file("server.key"),
        certificates.file("ca.crt")
    );
    Nats::start_configured(&configuration, &[])
}

#[track_caller]
fn refused(nats: &Nats, flags: &[&str], reason: &str) {
    let (code, said) = Bridge::refuses_on_fixtures(nats, flags);
    assert_eq!(code, Some(3), "{flags:?}: {said}");
    let last = said.trim().lines().last().unwrap_or_default();
    assert!(
        last.starts_with("ext-bridge: cannot connect to NATS at ") && last.contains(reason),
        "{flags:?}: {said}"
    );
}

#[test]
fn the_server_is_who_it_says() {
    let certificates = Certificates::make();
    let nats = server(&certificates, "");
    let (ca, other) = (certificates.file("ca.crt"), certificates.file("other.crt"));
    let at = |scheme: &str, host: &str| format!("{scheme}://{host}:{}", nats.port());
    for address in [at("tls", "localhost"), at("nats", "localhost")] {
        let bridge = Bridge::start_on_fixtures(&nats, &["--nats-url", &address, "--nats-tls-ca", &ca]);
        assert_eq!(bridge.readiness(), 200);
    }
    let unknown = "name the authority's with --nats-tls-ca";
    refused(&nats, &["--nats-url", &at("tls", "localhost")], unknown);
    // It asks for TLS itself.
    refused(&nats, &["--nats-url", &at("nats", "localhost")], unknown);
    let by_other = ["--nats-url", &at("tls", "localhost"), "--nats-tls-ca", &other];
    refused(&nats, &by_other, unknown);
    let by_number = ["--nats-url", &at("tls", "127.0.0.1"), "--nats-tls-ca", &ca];
    refused(&nats, &by_number, "address the server by a name in its certificate");

    let plain = Nats::start();
    let address = format!("tls://localhost:{}", plain.port());
    refused(
        &plain,
        &["--nats-url", &address, "--nats-tls-ca", &ca],
        "what is there does not speak TLS",
    );
}

#[test]
fn the_bridge_is_who_it_says() {
    let certificates = Certificates::make();
    let nats = server(&certificates, ", verify: true");
    let address = format!("tls://localhost:{}", nats.port());
    let ca = certificates.file("ca.crt");
    let flags = ["--nats-url", &address, "--nats-tls-ca", &ca];
    let pair = |name: &str| ["crt", "key"].map(|end| certificates.file(&format!("{name}.{end}")));
    let [cert, key] = pair("certified");
    let certified = ["--nats-tls-cert", &cert, "--nats-tls-key", &key];
    let bridge = Bridge::start_on_fixtures(&nats, &[&flags[..], &certified].concat());
    assert_eq!(bridge.readiness(), 200);
    refused(&nats, &flags, "give --nats-tls-cert and --nats-tls-key");
    let [cert, key] = pair("own");
    let own = [&flags[..], &["--nats-tls-cert", &cert, "--nats-tls-key", &key]].concat();
    refused(
        &nats,
        &own,
        "the server does not accept the certificate of --nats-tls-cert",
    );
}

#[test]
fn another_certificate_under_the_same_name_is_taken_by_sighup() {
    let certificates = Certificates::make();
    let nats = server(&certificates, ", verify: true");
    let copy = |from: &str| {
        for end in ["crt", "key"] {
            std::fs::copy(
                certificates.path(&format!("{from}.{end}")),
                certificates.path(&format!("mine.{end}")),
            )
            .expect("our own directory");
        }
    };
    copy("certified");
    let address = format!("tls://localhost:{}", nats.port());
    let (ca, cert, key) = (
        certificates.file("ca.crt"),
        certificates.file("mine.crt"),
        certificates.file("mine.key"),
    );
    let flags = [
        "--nats-url",
        &address,
        "--nats-tls-ca",
        &ca,
        "--nats-tls-cert",
        &cert,
        "--nats-tls-key",
        &key,
    ];
    let bridge = Bridge::start_on_fixtures(&nats, &flags);
    let moves = || bridge.log().matches("a new connection to NATS has taken over").count();
    let read = || bridge.log().matches("the settings were read again").count();
    // The same as before: nothing to do.
    bridge.hang_up();
    wait_until("the settings are read", SOON, || read() == 1);
    assert_eq!(moves(), 0);
    copy("server");
    bridge.hang_up();
    wait_until("the connection is another one", SOON, || moves() == 1 && read() == 2);
    copy("own");
    bridge.hang_up();
    wait_until("it is refused", SOON, || {
        bridge.log().contains("the way to NATS stays as it was")
    });
    assert_eq!((moves(), bridge.readiness()), (1, 200));
}

#[test]
fn an_nkey() {
    let user = KeyPair::new_user();
    let configuration = format!("authorization {{ users: [ {{ nkey: {} }} ] }}", user.public_key());
    let nats = Nats::start_configured(&configuration, &[]);
    let seed = user.seed().expect("it has one");
    let bridge = Bridge::start_on_fixtures(&nats, &["--nats-nkey-seed", &seed]);
    assert_eq!(bridge.readiness(), 200);
    assert!(!bridge.log().contains(&seed));
    let stranger = KeyPair::new_user().seed().expect("it has one");
    refused(
        &nats,
        &["--nats-nkey-seed", &stranger],
        "the server does not accept this login",
    );
    refused(&nats, &[], "the server asks for a login");
}

/// A JWT as nats-server wants it, signed by its issuer.
fn jwt(issuer: &KeyPair, subject: &KeyPair, expires: Option<u64>, nats: &Value) -> String {
    let mut claims = json!({"iss": issuer.public_key(), "sub": subject.public_key(), "iat": 1_700_000_000, "name": "test", "nats": nats});
    if let Some(expires) = expires {
        claims["exp"] = expires.into();
    }
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let signed = format!(
        "{}.{}",
        part(&json!({"typ": "JWT", "alg": "ed25519-nkey"})),
        part(&claims)
    );
    let signature = issuer.sign(signed.as_bytes()).expect("a private key");
    format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature))
}

#[test]
fn a_credentials_file() {
    let (operator, account) = (KeyPair::new_operator(), KeyPair::new_account());
    let limits = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1});
    let operator_jwt = jwt(&operator, &operator, None, &json!({"type": "operator", "version": 2}));
    let of_account = json!({"type": "account", "version": 2, "limits": limits});
    let account_jwt = jwt(&operator, &account, None, &of_account);
    let configuration = format!(
        "operator: {operator_jwt}\nresolver: MEMORY\nresolver_preload: {{ {}: {account_jwt} }}\n",
        account.public_key()
    );
    let nats = Nats::start_configured(&configuration, &[]);
    let directory = Directory::new("creds-", None);
    let credentials = |name: &str, issuer: &KeyPair, expires: Option<u64>| {
        let user = KeyPair::new_user();
        let of_user =
            json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}});
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            jwt(issuer, &user, expires, &of_user),
            user.seed().expect("it has one")
        );
        let file = directory.path().join(name);
        std::fs::write(&file, text).expect("our own directory");
        file.display().to_string()
    };
    let good = credentials("good.creds", &account, None);
    let bridge = Bridge::start_on_fixtures(&nats, &["--nats-creds", &good]);
    assert_eq!(bridge.readiness(), 200);
    let login = "the server does not accept this login; is it the server's, and not expired?";
    refused(
        &nats,
        &["--nats-creds", &credentials("old.creds", &account, Some(1_700_000_001))],
        login,
    );
    refused(
        &nats,
        &[
            "--nats-creds",
            &credentials("foreign.creds", &KeyPair::new_account(), None),
        ],
        login,
    );
}
