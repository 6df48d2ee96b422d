//! `/metrics`, `/healthz`, `/readyz`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::Status;
use super::registry::Registry;
use crate::metrics::Metrics;

#[derive(Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    registry: Arc<Registry>,
}

/// Serves until told to stop.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    registry: Arc<Registry>,
    mut stopped: watch::Receiver<bool>,
) {
    let app = Router::new()
        .route("/metrics", get(show_metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(Shared {
            metrics,
            status,
            registry,
        });
    let stop = async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(stop).await {
        tracing::error!(%error, "HTTP ended");
    }
}

async fn show_metrics(State(shared): State<Shared>) -> Response {
    shared.registry.refresh().await;
    shared.metrics.image_age.reset();
    if let Some(age) = shared.status.image_age() {
        shared.metrics.image_age.with_label_values::<&str>(&[]).set(age);
    }
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, shared.metrics.render()).into_response()
}

async fn ready(State(shared): State<Shared>) -> Response {
    let reasons = shared.status.reasons();
    let code = if reasons.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({"ready": reasons.is_empty(), "source": shared.status.source(), "reasons": reasons});
    (code, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}
