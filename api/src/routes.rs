//! Paths and answers.

use std::net::SocketAddr;
use std::sync::Arc;

use poem::http::StatusCode;
use poem::web::Data;
use poem::{Endpoint, EndpointExt, IntoResponse, Response, Route, handler};
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Object, OpenApi, OpenApiService};

use crate::views::{Block, Condition, Miner, Pool};
use crate::{PoolView, ViewError};

/// Most blocks of one answer.
const PAGE: u32 = 1000;

/// All routes over `view`; those of the REST API only where `rest` says so.
pub(crate) fn app(view: Arc<dyn PoolView>, rest: bool, address: SocketAddr) -> impl Endpoint {
    let common =
        Route::new().at("/health", poem::get(health)).at("/ready", poem::get(ready)).at("/metrics", poem::get(metrics));
    let routes = if rest { with_rest(common, &view, address) } else { common };
    routes.data(view)
}

fn with_rest(routes: Route, view: &Arc<dyn PoolView>, address: SocketAddr) -> Route {
    let service = OpenApiService::new(Api { view: view.clone() }, "Sluice", env!("CARGO_PKG_VERSION"))
        .description("Read-only API of a Sluice pool. Amounts are satoshis, times milliseconds since the Unix epoch.")
        .server(format!("http://{address}/api/v1"));
    routes.at("/api/v1/openapi.json", service.spec_endpoint()).nest("/api/v1", service)
}

/// 200 while the process works (perhaps degraded), 503 when a part has failed; the body says which.
#[handler]
async fn health(view: Data<&Arc<dyn PoolView>>) -> Response {
    match blocking(view.0, |view| Ok(view.health())).await {
        Ok(report) => {
            let failed = report.condition == Condition::Failed;
            let status = if failed { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
            poem_openapi::types::ToJSON::to_json_string(&report)
                .with_content_type("application/json")
                .with_status(status)
                .into_response()
        }
        Err(error) => unavailable(&error),
    }
}

/// 200 once miners are served, else 503.
#[handler]
async fn ready(view: Data<&Arc<dyn PoolView>>) -> Response {
    match blocking(view.0, |view| Ok(view.health())).await {
        Ok(report) if report.ready => "ready\n".into_response(),
        Ok(report) => {
            let waiting: Vec<String> = report
                .parts
                .iter()
                .filter(|part| part.condition != Condition::Ok)
                .map(|part| format!("{}: {}", part.name, part.detail))
                .collect();
            format!("not ready\n{}\n", waiting.join("\n")).with_status(StatusCode::SERVICE_UNAVAILABLE).into_response()
        }
        Err(error) => unavailable(&error),
    }
}

/// The text format of OpenMetrics, which Prometheus reads.
#[handler]
async fn metrics(view: Data<&Arc<dyn PoolView>>) -> Response {
    match blocking(view.0, |view| Ok(view.metrics())).await {
        Ok(text) => {
            text.with_content_type("application/openmetrics-text; version=1.0.0; charset=utf-8").into_response()
        }
        Err(error) => unavailable(&error),
    }
}

fn unavailable(error: &ViewError) -> Response {
    tracing::warn!(%error, "a request could not be answered");
    format!("{error}\n").with_status(StatusCode::SERVICE_UNAVAILABLE).into_response()
}

/// Runs `ask` where it may block.
async fn blocking<T: Send + 'static>(
    view: &Arc<dyn PoolView>,
    ask: impl FnOnce(&dyn PoolView) -> Result<T, ViewError> + Send + 'static,
) -> Result<T, ViewError> {
    let view = view.clone();
    match tokio::task::spawn_blocking(move || ask(view.as_ref())).await {
        Ok(answer) => answer,
        Err(cause) => Err(ViewError(format!("the view failed: {cause}"))),
    }
}

struct Api {
    view: Arc<dyn PoolView>,
}

/// What went wrong.
#[derive(Object)]
struct Problem {
    /// In words.
    error: String,
}

#[derive(ApiResponse)]
enum Failure {
    /// Nothing is known under that name.
    #[oai(status = 404)]
    NotFound(Json<Problem>),
    /// A store behind the API does not answer.
    #[oai(status = 503)]
    Unavailable(Json<Problem>),
}

impl Failure {
    fn not_found(error: String) -> Self {
        Self::NotFound(Json(Problem { error }))
    }
}

impl From<ViewError> for Failure {
    fn from(error: ViewError) -> Self {
        tracing::warn!(%error, "a request could not be answered");
        Self::Unavailable(Json(Problem { error: error.to_string() }))
    }
}

#[OpenApi]
impl Api {
    /// The pool: hash rates, shares, blocks, what it owes.
    #[oai(path = "/pool", method = "get")]
    async fn pool(&self) -> Result<Json<Pool>, Failure> {
        Ok(Json(blocking(&self.view, |view| view.pool()).await?))
    }

    /// A miner by payout address: hash rates, workers, balance, credits.
    #[oai(path = "/miners/:address", method = "get")]
    async fn miner(&self, address: Path<String>) -> Result<Json<Miner>, Failure> {
        let asked = address.0.clone();
        match blocking(&self.view, move |view| view.miner(&asked)).await? {
            Some(miner) => Ok(Json(miner)),
            None => Err(Failure::not_found(format!("no share or credit of {} is known to this pool", address.0))),
        }
    }

    /// Blocks the pool found, newest first, at most 1000 at a time; `before` is the hash of the last block of the page
    /// before.
    #[oai(path = "/blocks", method = "get")]
    async fn blocks(
        &self,
        before: Query<Option<String>>,
        #[oai(default = "default_page")] limit: Query<u32>,
    ) -> Result<Json<Vec<Block>>, Failure> {
        let (before, limit) = (before.0, limit.0.min(PAGE));
        match blocking(&self.view, move |view| view.blocks(before.as_deref(), limit)).await? {
            Some(blocks) => Ok(Json(blocks)),
            None => Err(Failure::not_found("the pool has no block of the hash `before`".to_owned())),
        }
    }
}

fn default_page() -> u32 {
    100
}
