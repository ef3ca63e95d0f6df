//! langchain-tests' own suite for chat models, once through holdfast and once directly at the same server.
//!
//! What the simulated model cannot do fails in both; the promise is that nothing ends differently through the gateway.

use std::collections::BTreeMap;

use tokio::process::Command;

use crate::install::{self, Missing};
use crate::support::{Bench, KEY, Settings, listening};

/// How the suite ended on both ways.
pub struct Suite {
    /// Name and version of each package.
    pub versions: Vec<(String, String)>,
    direct: BTreeMap<String, String>,
    through: BTreeMap<String, String>,
}

impl Suite {
    /// Tests that ended differently, with both ends.
    pub fn differences(&self) -> Vec<String> {
        let names: std::collections::BTreeSet<_> = self.direct.keys().chain(self.through.keys()).collect();
        let end = |of: &BTreeMap<String, String>, name: &String| of.get(name).map_or("not run", |e| e).to_owned();
        let pair = |name| (end(&self.direct, name), end(&self.through, name));
        let differ =
            names.into_iter().map(|name| (name, pair(name))).filter(|(_, (direct, through))| direct != through);
        differ
            .map(|(name, (direct, through))| format!("{name}: {direct} directly, {through} through holdfast"))
            .collect()
    }

    /// The names of tests that ended so through holdfast.
    pub fn names(&self, outcome: &str) -> Vec<&str> {
        self.through.iter().filter(|(_, ended)| *ended == outcome).map(|(name, _)| name.as_str()).collect()
    }
}

/// Runs it on both ways, one after the other.
pub async fn run(fresh: bool) -> Result<Suite, Missing> {
    let packages = ["langchain-tests", "langchain-openai"];
    let (python, versions) = install::packages("langchain-tests", &packages, fresh).await?;
    let (http, place) = listening();
    let bench = Bench::with(Settings { http, ..Settings::default() }).await;
    let one = async |base: &str| {
        let mut suite = Command::new(&python);
        suite.arg(install::sources("python").join("langchain_suite.py")).arg(format!("{base}/v1")).arg(KEY);
        let said =
            install::finish(suite.env("PYTHONDONTWRITEBYTECODE", "1"), "the suite did not run to its end").await?;
        Ok::<_, Missing>(said.lines().filter_map(outcome).collect::<BTreeMap<_, _>>())
    };
    let direct = one(&bench.uplink.base_url()).await?;
    let through = one(&format!("http://{place}")).await?;
    Ok(Suite { versions, direct, through })
}

/// Name and end of `@ OUTCOME NAME`.
fn outcome(line: &str) -> Option<(String, String)> {
    let (outcome, name) = line.strip_prefix("@ ")?.split_once(' ')?;
    Some((name.to_owned(), outcome.to_owned()))
}
