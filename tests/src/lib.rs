//! The harness: private Postgres, nats-server, bridge, foreign clients.
