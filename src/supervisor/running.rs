//! The running daemon: its parts, built and started in order, and stopped in order.
//!
//! Owns that order and nothing else: what a part is told stands in `parts`, what ends it in the parts themselves.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::doors::Doors;
use super::{SupervisorError, links, parts};
use crate::batch::Later;
use crate::cache::Cache;
use crate::clock::Floor;
use crate::config::Settings;
use crate::gateway::{Gateway, Parts};
use crate::ingress::http::{self, App, Models};
use crate::money::Money;
use crate::spool::Spool;
use crate::systemd;
use crate::task::Book;
use crate::telemetry::host::Board;

/// Whoever connected just before the doors are left says what it wants within this time, and is answered.
const JUST_CAME: Duration = Duration::from_millis(100);
/// What the last outcomes, the cache and the spool may take to be on the disk after the grace.
const CLOSING_MAX: Duration = Duration::from_secs(10);

/// All that runs.
pub(super) struct Running {
    floor: Arc<Floor>,
    /// What systemd's status line says besides.
    notice: watch::Sender<Option<String>>,
    grace: Duration,
    gateway: Gateway,
    driver: JoinHandle<()>,
    lines: Vec<JoinHandle<()>>,
    server: JoinHandle<()>,
    pulse: JoinHandle<()>,
    money: Money,
    cache: Cache,
    spool: Spool,
    shut: watch::Sender<bool>,
    stop: watch::Sender<bool>,
}

impl Running {
    /// Opens what is on disk, then the sockets, then starts the rest. `handed` are the sockets of the image before this one.
    pub(super) async fn start(
        settings: &Settings,
        handed: Vec<(String, OwnedFd)>,
    ) -> Result<(Running, Doors), SupervisorError> {
        let spool = parts::open_spool(settings).await?;
        let tasks = parts::tasks(settings)?;
        let link_options = links::options(settings)?;
        // After the spool: where another daemon has it, its sockets stay its own.
        let doors = Doors::open(&settings.http, handed)?;
        let listeners = doors.listeners(&settings.http)?;
        let floor = Arc::new(Floor::new(spool.load_floor().await.map_err(SupervisorError::of_spool)?));
        let money = parts::open_money(settings).await?;
        let names: Vec<String> = settings.uplinks.iter().map(|u| u.name.clone()).collect();
        let models = Arc::new(Models::open(&settings.gateway.data_dir, &names));
        let (gateway, driver) = start_gateway(settings, &spool, &tasks, &floor, &money, &models).await?;
        let (stop, stopped) = watch::channel(false);
        let (shut, shutting) = watch::channel(false);
        let (links, lines) = links::start(&gateway, link_options, settings, Arc::new(tasks), &stopped);
        let cache = parts::open_cache(settings, spool.powered_ms()).await?;
        let later = Later::start(gateway.clone(), parts::later_options(settings), stopped.clone());
        let options = parts::http_options(settings, cache.clone());
        let (notice, notices) = watch::channel(None);
        let app = App::new(gateway.clone(), options, models, links, later, notices.clone(), stopped.clone());
        app.restore_repeats().await;
        let grace = settings.gateway.stop_grace;
        let server = tokio::spawn(http::serve(app.clone(), listeners, shutting, stopped, grace));
        let pulse = tokio::spawn(systemd::keep(gateway.clone(), notices, move || app.second_thread()));
        let running =
            Running { floor, notice, grace, gateway, driver, lines, server, pulse, money, cache, spool, shut, stop };
        Ok((running, doors))
    }

    /// The latest time that is known to have been.
    pub(super) fn floor(&self) -> &Arc<Floor> {
        &self.floor
    }

    /// Has systemd's status line say this, too.
    pub(super) fn note(&self, words: String) {
        let _ = self.notice.send(Some(words));
    }

    /// How long the end may take.
    pub(super) fn closing_max(&self) -> Duration {
        self.grace + CLOSING_MAX
    }

    /// Accepts no more connections.
    pub(super) async fn leave_doors(&self) {
        let _ = self.shut.send(true);
        tokio::time::sleep(JUST_CAME).await;
    }

    /// Lets what is under way end, within the grace; then all is on the disk and closed.
    pub(super) async fn end(self) {
        self.gateway.stop(self.grace);
        let _ = self.stop.send(true);
        let _ = self.server.await;
        for line in self.lines {
            let _ = line.await;
        }
        let _ = self.driver.await;
        self.pulse.abort();
        self.money.close().await;
        self.cache.flush().await;
        self.spool.close().await;
    }
}

async fn start_gateway(
    settings: &Settings,
    spool: &Spool,
    tasks: &Arc<Book>,
    floor: &Arc<Floor>,
    money: &Money,
    models: &Arc<Models>,
) -> Result<(Gateway, JoinHandle<()>), SupervisorError> {
    let uplinks = parts::uplinks(settings, floor)?;
    let on_models = models.clone();
    Ok(Gateway::start(Parts {
        settings: parts::control_settings(settings, &uplinks),
        uplinks,
        pauses: spool.load_pauses().await.map_err(SupervisorError::of_spool)?,
        held: spool.load_held().await.map_err(SupervisorError::of_spool)?,
        floor: floor.clone(),
        local: parts::local_client(settings)?,
        spool: spool.clone(),
        tasks: tasks.clone(),
        prices: parts::prices(settings),
        auto: settings.auto.clone(),
        money: money.clone(),
        network: crate::network::watch(),
        on_models: Box::new(move |uplink, body| on_models.update(uplink, body)),
        board: Board::new(settings.gateway.data_dir.clone()),
    }))
}
