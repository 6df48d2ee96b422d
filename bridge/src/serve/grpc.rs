//! gRPC: health and reflection for everybody, `RouterAdmin` with `x-api-key`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status as GrpcStatus};
use tonic_health::ServingStatus;

use super::Status;
use super::admin::key_fits;
use super::clock::now_ms;
use super::registry::Registry;
use super::reload::Live;
use crate::config::Source;

/// Generated from `proto/flow.proto`.
mod flow {
    #![allow(clippy::all, clippy::pedantic, missing_docs)]
    tonic::include_proto!("beamline.flow.v1");
}

use flow::router_admin_server::{RouterAdmin, RouterAdminServer};
use flow::{GetValidatorsHealthRequest, GetValidatorsHealthResponse, ValidatorStatus};

const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/flow_descriptor.bin"));
const SERVICE: &str = "beamline.flow.v1.RouterAdmin";

struct Admin {
    live: Live,
    status: Arc<Status>,
    registry: Arc<Registry>,
}

fn validator(
    name: String,
    enabled: bool,
    state: &str,
    version: String,
    success_rate: Option<f64>,
    p95_latency_ms: Option<f64>,
    timestamp_ms: i64,
) -> ValidatorStatus {
    let status = match (enabled, state) {
        (false, _) => "disabled",
        (true, "open") => "not_serving",
        (true, "half_open") => "recovering",
        _ => "serving",
    };
    let mut details = HashMap::from([
        ("circuit_breaker_state".to_owned(), state.to_owned()),
        ("version".to_owned(), version),
    ]);
    if let Some(rate) = success_rate {
        details.insert("success_rate".to_owned(), format!("{rate:.4}"));
    }
    if let Some(p95) = p95_latency_ms {
        details.insert("p95_latency_ms".to_owned(), format!("{p95:.3}"));
    }
    ValidatorStatus {
        name,
        status: status.to_owned(),
        timestamp_ms,
        details,
    }
}

#[tonic::async_trait]
impl RouterAdmin for Admin {
    async fn get_validators_health(
        &self,
        request: Request<GetValidatorsHealthRequest>,
    ) -> Result<Response<GetValidatorsHealthResponse>, GrpcStatus> {
        let brought = request
            .metadata()
            .get("x-api-key")
            .and_then(|value| value.to_str().ok());
        if !key_fits(self.live.borrow().api_key.as_deref(), brought) {
            self.registry.unauthorized();
            return Err(GrpcStatus::unauthenticated("x-api-key is missing or wrong"));
        }
        let reasons = self.status.reasons();
        let now = now_ms();
        let mut validators = vec![ValidatorStatus {
            name: "grpc_health".to_owned(),
            status: if reasons.is_empty() { "serving" } else { "not_serving" }.to_owned(),
            timestamp_ms: now,
            details: reasons
                .iter()
                .enumerate()
                .map(|(i, r)| (format!("reason_{}", i + 1), (*r).to_owned()))
                .collect(),
        }];
        let rows = match self.registry.source() {
            Source::Fixtures => None,
            Source::Database | Source::Auto => {
                let sql = include_str!("../queries/validators.sql");
                let rows = self.registry.query(sql, &[]).await;
                rows.inspect_err(|error| tracing::warn!(%error, "GetValidatorsHealth has no answer of Postgres"))
                    .ok()
            }
        };
        if let Some(rows) = rows {
            validators.extend(rows.iter().map(|row| {
                let state = row.get::<_, Option<&str>>(2).unwrap_or("closed");
                let version = row.get::<_, Option<String>>(5).unwrap_or_default();
                validator(row.get(0), row.get(1), state, version, row.get(3), row.get(4), now)
            }));
        } else if let Some(views) = self.registry.own_views().await {
            let own = views.iter().filter(|(_, view)| view.kind == "validator");
            validators.extend(own.map(|(id, view)| {
                let (state, version) = (view.breaker.as_str(), view.version.clone());
                let p95 = view.latency.quantile(0.95);
                validator(id.clone(), view.enabled, state, version, view.success_rate(), p95, now)
            }));
        } else {
            return Err(GrpcStatus::unavailable("the registry does not answer"));
        }
        Ok(Response::new(GetValidatorsHealthResponse { validators }))
    }
}

/// Serves until told to stop.
pub async fn serve(
    listener: TcpListener,
    live: Live,
    status: Arc<Status>,
    registry: Arc<Registry>,
    mut stopped: watch::Receiver<bool>,
) {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", ServingStatus::NotServing).await;
    reporter.set_service_status(SERVICE, ServingStatus::NotServing).await;
    let watched = Arc::clone(&status);
    let teller = tokio::spawn(async move {
        let mut told = false;
        loop {
            let ready = watched.reasons().is_empty();
            if ready != told {
                told = ready;
                let now = if ready {
                    ServingStatus::Serving
                } else {
                    ServingStatus::NotServing
                };
                reporter.set_service_status("", now).await;
                reporter.set_service_status(SERVICE, now).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let built = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTOR)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .and_then(|v1| {
            let alpha = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTOR)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .build_v1alpha()?;
            Ok((v1, alpha))
        });
    let (v1, alpha) = match built {
        Ok(both) => both,
        Err(error) => {
            tracing::error!(%error, "gRPC reflection cannot be built");
            return;
        }
    };
    let stop = async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let server = Server::builder()
        .add_service(health)
        .add_service(v1)
        .add_service(alpha)
        .add_service(RouterAdminServer::new(Admin { live, status, registry }))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop);
    if let Err(error) = server.await {
        tracing::error!(%error, "gRPC ended");
    }
    teller.abort();
}
