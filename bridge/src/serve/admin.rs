//! Admin operations over NATS. Each needs the header `x-api-key`; without a configured key all are refused.

use std::sync::Arc;

use bytes::Bytes;
use ext_registry_core::policy::PolicyDocument;
use serde_json::{Map, Value as Json, json};
use subtle::ConstantTimeEq;
use tokio::sync::{mpsc, oneshot};

use super::event_loop::{AdminRequest, Control};
use super::registry::Registry;
use super::reload::{Live, Reloader};
use super::views::View;
use crate::config::{Settings, Source};
use crate::machine::InsideRequest;
use crate::machine::codes::{Code, Failure};
use crate::machine::request::Asked;
use crate::pg::PgError;
use crate::transport::Headers;

/// Whether a request brought the configured key. Compared in constant time.
pub fn key_fits(configured: Option<&str>, brought: Option<&str>) -> bool {
    match (configured, brought) {
        (Some(configured), Some(brought)) => configured.as_bytes().ct_eq(brought.as_bytes()).into(),
        _ => false,
    }
}

/// Answers requests until the loops are gone.
pub async fn serve(
    live: Live,
    registry: Arc<Registry>,
    reloader: Arc<Reloader>,
    mut requests: mpsc::UnboundedReceiver<AdminRequest>,
) {
    while let Some(request) = requests.recv().await {
        let (settings, registry) = (Arc::clone(&live.borrow()), Arc::clone(&registry));
        let reloader = Arc::clone(&reloader);
        tokio::spawn(async move {
            let answer = answer(&settings, &registry, &reloader, &request).await;
            let Some(reply) = request.reply else { return };
            let mut headers = Headers::default();
            let body = match answer {
                Ok(body) => body.to_string().into_bytes(),
                Err(failure) => {
                    headers.push("Nats-Service-Error", &failure.message);
                    headers.push("Nats-Service-Error-Code", &failure.code.number().to_string());
                    failure.body()
                }
            };
            let _ = request.from.send(Control::Reply(reply, headers, Bytes::from(body))); // the loop may have ended
        });
    }
}

fn unavailable(error: &PgError) -> Failure {
    tracing::warn!(%error, "an admin operation failed");
    Failure::new(Code::RegistryUnavailable, "the registry does not answer")
}

/// One object per extension: Postgres's, or, where it does not answer, what this bridge has seen itself.
async fn by_extension(
    registry: &Registry,
    here: bool,
    sql: &str,
    show: impl Fn(&View, &str) -> Json,
) -> Result<Json, Failure> {
    let asked = if here {
        Err(PgError::TimedOut)
    } else {
        registry.json(sql, &[]).await
    };
    match asked {
        Ok(answer) => Ok(answer),
        Err(error) => {
            let views = registry.own_views().await.ok_or_else(|| unavailable(&error))?;
            Ok(views.iter().map(|(id, view)| (id.clone(), show(view, id))).collect())
        }
    }
}

async fn answer(
    settings: &Settings,
    registry: &Registry,
    reloader: &Reloader,
    request: &AdminRequest,
) -> Result<Json, Failure> {
    if !key_fits(settings.api_key.as_deref(), request.key.as_deref()) {
        registry.unauthorized();
        return Err(Failure::new(Code::Unauthorized, "x-api-key is missing or wrong"));
    }
    let body: Map<String, Json> = if request.payload.trim_ascii().is_empty() {
        Map::new()
    } else {
        serde_json::from_slice(&request.payload)
            .map_err(|_| Failure::new(Code::InvalidRequest, "the request must be a JSON object"))?
    };
    if request.op == "dry_run_pipeline" {
        return dry_run(&body, &request.from).await;
    }
    let here = registry.source() == Source::Fixtures;
    match request.op.as_str() {
        "get_extension_health" => {
            let sql = include_str!("../queries/admin_health.sql");
            Ok(json!({"health": by_extension(registry, here, sql, View::health).await?}))
        }
        "get_circuit_breaker_states" => {
            let sql = include_str!("../queries/admin_breakers.sql");
            Ok(json!({"states": by_extension(registry, here, sql, View::breaker).await?}))
        }
        "get_pipeline_complexity" => {
            let (tenant, policy) = (word(&body, "tenant_id")?, word(&body, "policy_id")?);
            let sql = include_str!("../queries/admin_policy.sql");
            let asked = if here {
                Err(PgError::TimedOut)
            } else {
                registry.json(sql, &[&tenant, &policy]).await
            };
            let document = match asked {
                Ok(document) => document,
                Err(error) => {
                    let own = registry.own_policy(&(tenant.clone(), policy.clone()));
                    own.ok_or_else(|| unavailable(&error))?
                }
            };
            if document.is_null() {
                return Err(Failure::new(
                    Code::PolicyNotFound,
                    format!("tenant {tenant} has no policy {policy}"),
                ));
            }
            let policy = PolicyDocument::parse(&document).map_err(|e| Failure::new(Code::Internal, e.to_string()))?;
            Ok(complexity(&policy))
        }
        "reload" => {
            // What is still good decides on where something is not.
            let reloaded = reloader.reload_registry().await;
            registry.reload().await.map_err(|error| unavailable(&error))?;
            reloaded.map_err(|error| Failure::new(Code::RegistryUnavailable, error.message))?;
            Ok(json!({"ok": true}))
        }
        other => Err(Failure::new(
            Code::InvalidRequest,
            format!("{other} is not available in this version"),
        )),
    }
}

fn word(body: &Map<String, Json>, key: &str) -> Result<String, Failure> {
    match body.get(key) {
        Some(Json::String(text)) if !text.is_empty() => Ok(text.clone()),
        _ => {
            Err(Failure::new(Code::InvalidRequest, format!("{key} is required and must be a string")).with("key", key))
        }
    }
}

/// What a pipeline would do: the same path as a call of it, without effects. The payload is the message, or its payload where
/// it is no object.
async fn dry_run(body: &Map<String, Json>, via: &mpsc::UnboundedSender<Control>) -> Result<Json, Failure> {
    let (tenant, policy) = (word(body, "tenant_id")?, word(body, "policy_id")?);
    let payload = match body.get("payload") {
        None | Some(Json::Null) => {
            return Err(Failure::new(Code::InvalidRequest, "payload is required").with("key", "payload"));
        }
        Some(payload) => payload,
    };
    if body.get("dry_run").is_some_and(|dry| *dry != Json::Bool(true)) {
        let failure = Failure::new(
            Code::InvalidRequest,
            "dry_run can only be true; use route to call the pipeline",
        );
        return Err(failure.with("key", "dry_run"));
    }
    let message = if payload.is_object() {
        payload.clone()
    } else {
        json!({ "payload": payload })
    };
    let mut route = json!({"tenant_id": tenant, "policy_id": policy, "message": message, "dry_run": true});
    for key in ["metadata", "context", "request_id", "trace_id", "timeout_ms"] {
        if let Some(value) = body.get(key) {
            route[key] = value.clone();
        }
    }
    let (tell, told) = oneshot::channel();
    let request = InsideRequest {
        asked: Asked::Route,
        extension_id: String::new(),
        body: route.to_string().into(),
    };
    let _ = via.send(Control::Inside(request, tell)); // a loop that has ended answers nothing
    let answer = told
        .await
        .unwrap_or_else(|_| Err(Failure::new(Code::Overloaded, "the bridge is shutting down")));
    match answer {
        Ok(bytes) => {
            let reply: Json =
                serde_json::from_slice(&bytes).map_err(|e| Failure::new(Code::Internal, e.to_string()))?;
            Ok(dry_run_result(&reply, payload.is_object()))
        }
        // Who refuses is in the details already where an extension does.
        Err(failure) => {
            let blocked_by = failure.details.get("extension_id").cloned().unwrap_or(Json::Null);
            Err(failure.with("blocked_by", blocked_by))
        }
    }
}

/// The reply of a pipeline in the shape of this operation.
fn dry_run_result(reply: &Json, whole_message: bool) -> Json {
    let executed = reply["executed_extensions"].as_array().cloned().unwrap_or_default();
    let post: Vec<&Json> = executed
        .iter()
        .filter(|item| item["type"] == "post" && item["status"] == "dry_run")
        .map(|item| &item["id"])
        .collect();
    let payload = if whole_message {
        &reply["message"]
    } else {
        &reply["message"]["payload"]
    };
    json!({"ok": true, "result": {
        "decision": reply["decision"], "provider_selected": reply["decision"]["provider_id"], "blocked_by": null,
        "executed_extensions": executed, "post_processors_executed": post, "final_payload": payload}})
}

/// Assumed time of one extension, in ms.
const ASSUMED_LATENCY_MS: usize = 30;

/// How involved a pipeline is, 0-100, with the thresholds of the system this one replaces.
fn complexity(policy: &PolicyDocument) -> Json {
    let (pre, validators, post) = (policy.pre.len(), policy.validators.len(), policy.post.len());
    let total = pre + validators + post;
    let mut score = if total <= 4 {
        total * 15
    } else {
        60 + ((total - 4) * 5).min(20)
    };
    score += [pre, validators, post].iter().filter(|n| **n > 2).count() * 5;
    score += (total.saturating_sub(4) * 4).min(20);
    let score = score.min(100);
    let level = match score {
        0..30 => "low",
        30..60 => "medium",
        60..80 => "high",
        _ => "very_high",
    };
    let mut warnings = Vec::new();
    let mut recommendations = Vec::new();
    for (what, count, most) in [
        ("extensions", total, 4),
        ("pre-processors", pre, 2),
        ("validators", validators, 2),
        ("post-processors", post, 2),
    ] {
        if count > most {
            warnings.push(format!("{count} {what}, recommended are at most {most}"));
            recommendations.push(format!("Merge or drop {what} until there are {most} or fewer."));
        }
    }
    json!({
        "total_extensions": total, "pre_count": pre, "validators_count": validators, "post_count": post,
        "complexity_score": score, "complexity_level": level, "estimated_latency_ms": total * ASSUMED_LATENCY_MS,
        "recommended_limits": {"max_total": 4, "max_pre": 2, "max_validators": 2, "max_post": 2},
        "warnings": warnings, "recommendations": recommendations,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_configured_is_refused() {
        assert!(!key_fits(None, None) && !key_fits(None, Some("")) && !key_fits(Some("a"), None));
        assert!(!key_fits(Some("a"), Some("b")) && key_fits(Some("a"), Some("a")));
    }

    #[test]
    fn dry_runs_have_the_shape_of_their_operation() {
        let executed =
            json!([{"id": "a", "type": "pre", "status": "dry_run"}, {"id": "z", "type": "post", "status": "dry_run"}]);
        let reply = json!({"ok": true, "message": {"payload": "x"}, "executed_extensions": executed,
                           "decision": {"provider_id": "p", "reason": "weighted"}});
        let answer = dry_run_result(&reply, false);
        assert_eq!(
            answer,
            json!({"ok": true, "result": {
                "decision": {"provider_id": "p", "reason": "weighted"}, "provider_selected": "p", "blocked_by": null,
                "executed_extensions": executed, "post_processors_executed": ["z"], "final_payload": "x"}})
        );
        assert_eq!(
            dry_run_result(&reply, true)["result"]["final_payload"],
            json!({"payload": "x"})
        );
    }

    #[test]
    fn scores() {
        let policy = |pre: usize, validators: usize, post: usize| {
            let items = |n: usize| (0..n).map(|i| json!({"id": format!("e{i}")})).collect::<Vec<_>>();
            PolicyDocument::parse(&json!({"pre": items(pre), "validators": items(validators), "post": items(post)}))
                .unwrap()
        };
        assert_eq!(complexity(&policy(1, 0, 0))["complexity_level"], "low");
        assert_eq!(complexity(&policy(1, 1, 1))["complexity_score"], 45);
        let big = complexity(&policy(4, 3, 3));
        assert_eq!(
            (
                big["complexity_score"].as_u64(),
                big["warnings"].as_array().unwrap().len()
            ),
            (Some(100), 4)
        );
    }
}
