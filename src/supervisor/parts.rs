//! What each part wants, from the configuration: their options, and the opening of those that have files.
//!
//! Owns the translation of the configuration's words into the rooms' own. Starts nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

use super::SupervisorError;
use crate::batch;
use crate::cache::{self, Cache};
use crate::clock::{self, Floor};
use crate::config::{self, Auth, Format, KeepWarm, Level, LocalApi, OnUnknown, Settings, WhenFull};
use crate::control;
use crate::control::breaker::BreakerSettings;
use crate::control::drain::DrainSettings;
use crate::control::health::ProbeSettings;
use crate::control::keys::KeySettings;
use crate::control::price::{Price, Prices};
use crate::control::retry::RetrySettings;
use crate::ingress::http;
use crate::money::{self, Money};
use crate::spool;
use crate::task::Book;
use crate::telemetry::host;
use crate::telemetry::log::Form;
use crate::uplink::cloud::{self, Cloud, Keys};
use crate::uplink::local::{self, Local};

/// The configuration has checked them; what can go wrong here is a schema file that changed in between.
pub(super) fn tasks(settings: &Settings) -> Result<Arc<Book>, SupervisorError> {
    Book::new(settings.tasks.clone()).map(Arc::new).map_err(|faults| {
        let lines = faults.iter().map(|(id, wrong)| format!("task {id}: {}: {}", wrong.key, wrong.message));
        SupervisorError::Configuration(lines.collect::<Vec<_>>().join("\n"))
    })
}

pub(super) fn prices(settings: &Settings) -> Prices {
    let price = |model: &config::Model| Price {
        usd_per_mtok_in: model.usd_per_mtok_in,
        usd_per_mtok_out: model.usd_per_mtok_out,
        max_output_tokens: model.max_output_tokens,
    };
    let free = settings.uplinks.iter().filter(|uplink| uplink.free).map(|uplink| uplink.name.clone());
    Prices::new(settings.models.iter().map(|model| (model.name.clone(), price(model)))).with_free(free)
}

pub(super) async fn open_money(settings: &Settings) -> Result<Money, SupervisorError> {
    let options = money::Options {
        data_dir: settings.gateway.data_dir.clone(),
        usd_per_day: settings.budget.usd_per_day,
        prices: prices(settings),
    };
    let opened = tokio::task::spawn_blocking(move || Money::open(options)).await;
    opened.map_err(|e| SupervisorError::Io(e.to_string()))
}

pub(super) async fn open_spool(settings: &Settings) -> Result<spool::Spool, SupervisorError> {
    let options = spool_options(settings);
    let opened = tokio::task::spawn_blocking(move || spool::open(options)).await;
    let opened = opened.map_err(|e| SupervisorError::Io(e.to_string()))?;
    opened.map_err(|error| SupervisorError::of_spool(error).at(&settings.gateway.data_dir))
}

pub(super) fn spool_options(settings: &Settings) -> spool::Options {
    spool::Options {
        data_dir: settings.gateway.data_dir.clone(),
        max_bytes: settings.queue.max_bytes,
        max_requests: settings.queue.max_requests,
        min_disk_free: settings.queue.min_disk_free,
        evict_when_full: settings.queue.when_full == WhenFull::Evict,
        per_source_backlog: settings.limits.per_source_backlog,
        keep_results_ms: settings.queue.keep_results.as_millis() as u64,
        keep_results_bytes: settings.queue.keep_results_bytes,
        hold_unknown: settings.retry.on_unknown == OnUnknown::Hold,
    }
}

pub(super) fn server_tls(http: &config::Http) -> Result<Option<tokio_rustls::TlsAcceptor>, SupervisorError> {
    let (Some(cert), Some(key)) = (&http.tls_cert, &http.tls_key) else { return Ok(None) };
    let fault = |path: &PathBuf, e: String| SupervisorError::Configuration(format!("{}: {e}", path.display()));
    let certificates = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| fault(cert, e.to_string()))?;
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|e| fault(key, e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|b| b.with_no_client_auth().with_single_cert(certificates, key_der))
        .map_err(|e| fault(cert, e.to_string()))?;
    Ok(Some(tokio_rustls::TlsAcceptor::from(Arc::new(server))))
}

pub(super) fn uplinks(settings: &Settings, floor: &Arc<Floor>) -> Result<Vec<Arc<Cloud>>, SupervisorError> {
    let build = |u: &config::Uplink| {
        let options = cloud::Options {
            name: u.name.clone(),
            base_url: u.base_url.clone(),
            keys: readable_keys(&u.name, &u.api_keys),
            auth: if u.auth == Auth::ApiKey { cloud::Auth::ApiKey } else { cloud::Auth::Bearer },
            models: u.models.clone(),
            ca_file: u.ca_file.clone(),
            probe_path: u.probe.path.clone(),
            probe_timeout: u.probe.timeout,
            timeouts: cloud::Timeouts {
                connect: u.timeouts.connect,
                first_byte: u.timeouts.first_byte,
                idle: u.timeouts.idle,
                total: u.timeouts.total,
            },
            floor: floor.clone(),
        };
        Cloud::new(options).map(Arc::new).map_err(|e| SupervisorError::Configuration(format!("uplink {}: {e}", u.name)))
    };
    settings.uplinks.iter().map(build).collect()
}

/// The keys that can be read. With none the uplink counts as down and the gateway serves all the same.
fn readable_keys(uplink: &str, sources: &[config::ApiKey]) -> Keys {
    let (mut keys, mut faults) = (Vec::new(), Vec::new());
    for (index, key) in sources.iter().enumerate() {
        match config::read_key(&key.source) {
            Ok(secret) => keys.push(cloud::ApiKey {
                number: index + 1,
                source: key.source.label(),
                value: secret.reveal().to_owned(),
                max_in_flight: key.max_in_flight,
            }),
            Err(fault) => faults.push(fault),
        }
    }
    let why = faults.join("; ");
    if faults.is_empty() {
        return if keys.is_empty() { Keys::None } else { Keys::Some(keys) };
    }
    if keys.is_empty() {
        tracing::error!(HOLDFAST_UPLINK = uplink, HOLDFAST_REASON = "no_key", "uplink {uplink} has no key: {why}");
        return Keys::Missing(why);
    }
    let (some, all) = (keys.len(), sources.len());
    tracing::error!(
        HOLDFAST_UPLINK = uplink,
        HOLDFAST_REASON = "no_key",
        "uplink {uplink} has {some} of its {all} keys: {why}"
    );
    Keys::Some(keys)
}

pub(super) fn local_client(settings: &Settings) -> Result<Local, SupervisorError> {
    let l = &settings.local;
    Local::new(local::Options {
        base_url: l.base_url.clone(),
        api: if l.api == LocalApi::OpenAi { local::Api::OpenAi } else { local::Api::Ollama },
        model: l.model.clone(),
        vision_model: l.vision_model.clone().unwrap_or_default(),
        models: l.models.clone(),
        max_in_flight: l.max_in_flight as usize,
        timeouts: local::Timeouts {
            connect: l.timeouts.connect,
            first_token: l.timeouts.first_token,
            idle: l.timeouts.idle,
            total: l.timeouts.total,
        },
        steward: local::StewardSettings {
            warm: match l.keep_warm {
                KeepWarm::Never => local::Warm::Never,
                KeepWarm::Degraded => local::Warm::Degraded,
                KeepWarm::Always => local::Warm::Always,
            },
            max_temperature_c: l.max_temperature_c,
            shares_memory: l.base_url.as_deref().is_some_and(local::is_here) && !host::has_graphics_memory(),
        },
    })
    .map_err(|e| SupervisorError::Configuration(format!("[local]: {e}")))
}

pub(super) fn control_settings(settings: &Settings, uplinks: &[Arc<Cloud>]) -> control::Settings {
    let ms = |d: Duration| d.as_millis() as u64;
    let keys = |cloud: &Arc<Cloud>| {
        let bound = |key: &cloud::ApiKey| KeySettings { max_in_flight: key.max_in_flight.unwrap_or(u32::MAX) };
        cloud.keys().iter().map(bound).collect()
    };
    let uplink = |(u, cloud): (&config::Uplink, &Arc<Cloud>)| control::UplinkSettings {
        keys: keys(cloud),
        priority: u.priority,
        weight: u.weight,
        max_in_flight: u.max_in_flight,
        probe: ProbeSettings {
            interval_ms: ms(u.probe.interval),
            timeout_ms: ms(u.probe.timeout),
            fall: u.probe.fall,
            rise: u.probe.rise,
            degraded_above_ms: ms(u.probe.degraded_above),
        },
        breaker: BreakerSettings { failures: u.breaker.failures, open_for_ms: ms(u.breaker.open_for) },
    };
    let retry = &settings.retry;
    control::Settings {
        uplinks: settings.uplinks.iter().zip(uplinks).map(uplink).collect(),
        strategy: settings.routing.strategy,
        retry: RetrySettings {
            attempts: retry.attempts,
            base_ms: ms(retry.base),
            max_ms: ms(retry.max),
            budget: retry.budget,
        },
        hold_unknown: retry.on_unknown == OnUnknown::Hold,
        max_attempts: settings.queue.max_attempts,
        drain: DrainSettings {
            max_in_flight: settings.drain.max_in_flight,
            start_delay_ms: start_delay_ms(&settings.gateway.device_id, ms(settings.drain.start_jitter)),
        },
        seed: clock::random_u64(),
    }
}

/// The same device always waits as long: a fleet spreads evenly, and a technician sees no mystery.
fn start_delay_ms(device_id: &str, jitter_ms: u64) -> u64 {
    let digest = Sha256::digest(device_id);
    let mut first = [0u8; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first) % (jitter_ms + 1)
}

/// Answers to repeated questions; one that cannot be opened is off, and stops no start.
pub(super) async fn open_cache(settings: &Settings, powered_ms: u64) -> Result<Cache, SupervisorError> {
    let options = cache::Options {
        data_dir: settings.gateway.data_dir.clone(),
        ttl_ms: settings.cache.ttl.as_millis() as u64,
        stale_ms: settings.cache.offline_stale.as_millis() as u64,
        max_bytes: settings.cache.max_bytes,
        min_free: settings.queue.min_disk_free,
        shared: settings.cache.shared,
    };
    let opened = tokio::task::spawn_blocking(move || Cache::open(&options, powered_ms)).await;
    opened.map_err(|e| SupervisorError::Io(e.to_string()))
}

pub(super) fn http_options(settings: &Settings, cache: Cache) -> http::Options {
    http::Options {
        device_id: settings.gateway.device_id.clone(),
        max_body: settings.http.max_body,
        max_in_flight: settings.http.max_in_flight as usize,
        rate: (settings.limits.rate > 0).then_some((settings.limits.rate, settings.limits.burst)),
        offline: settings.routing.offline,
        ttl: settings.queue.ttl,
        hold_unknown: settings.retry.on_unknown == OnUnknown::Hold,
        allowed_origins: settings.http.allowed_origins.clone(),
        allowed_hosts: settings.http.allowed_hosts.clone(),
        local_model: settings.local.model.clone(),
        local_api: if settings.local.api == LocalApi::OpenAi { "openai" } else { "ollama" },
        data_dir: settings.gateway.data_dir.clone(),
        cache,
    }
}

pub(super) fn later_options(settings: &Settings) -> batch::Options {
    let queue = spool_options(settings);
    batch::Options {
        max_body: settings.http.max_body,
        max_bytes: queue.max_bytes,
        min_disk_free: queue.min_disk_free,
        per_source_backlog: queue.per_source_backlog,
        max_requests: queue.max_requests,
        data_dir: queue.data_dir,
    }
}

pub(super) fn level(level: Level) -> tracing::Level {
    match level {
        Level::Error => tracing::Level::ERROR,
        Level::Warn => tracing::Level::WARN,
        Level::Info => tracing::Level::INFO,
        Level::Debug => tracing::Level::DEBUG,
        Level::Trace => tracing::Level::TRACE,
    }
}

pub(super) fn form(format: Format) -> Form {
    match format {
        Format::Auto => Form::Auto,
        Format::Text => Form::Text,
        Format::Json => Form::Json,
        Format::Journald => Form::Journal,
    }
}

#[cfg(test)]
mod tests {
    use super::start_delay_ms;

    #[test]
    fn devices_spread_over_the_jitter() {
        let delays: Vec<u64> = (0..1000).map(|n| start_delay_ms(&format!("gw{n}"), 5000)).collect();
        assert!(delays.iter().all(|ms| *ms <= 5000));
        assert!((400..600).contains(&delays.iter().filter(|ms| **ms < 2500).count()));
        assert_eq!(start_delay_ms("gw1", 5000), delays[1]);
        assert_eq!(start_delay_ms("gw1", 0), 0);
    }
}
