//! `holdfast spend`: what was paid, by day, uplink, model and source.
//!
//! Shows what the daemon's ledger says; adds up nothing itself.

use hyper::Method;
use serde_json::Value;

use super::client::Client;
use super::exit::Done;
use super::out::{Out, columns, count_at, number_at, text_at};

/// Days that the daemon keeps: more cannot be asked for.
const DAYS_MAX: u64 = 400;

/// `spend`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// So many UTC days, today included
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..=DAYS_MAX))]
    days: u64,
}

/// Prints the days, then the rows of the latest day that has some.
pub async fn run(args: &Args, client: &Client, out: &Out) -> Done {
    let spend = client.call(Method::GET, &format!("/holdfast/v1/spend?days={}", args.days)).await?;
    if out.json {
        out.json(&spend)?;
        return Ok(0);
    }
    for line in render(&spend) {
        out.line(&line)?;
    }
    Ok(0)
}

fn render(spend: &Value) -> Vec<String> {
    let none = Vec::new();
    let days = spend.get("days").and_then(Value::as_array).unwrap_or(&none);
    let mut table = vec![["DAY (UTC)", "USD", "TOKENS IN", "TOKENS OUT", "NOTE"].map(str::to_owned).to_vec()];
    table.extend(days.iter().map(|day| {
        let crashed = number_at(day, "/crashed_usd").filter(|usd| *usd > 0.0);
        let note = crashed.map(|usd| format!("{usd:.4} of it taken before a crash, counted as spent"));
        vec![
            text_at(day, "/date"),
            usd(day),
            count_at(day, "/prompt_tokens").to_string(),
            count_at(day, "/completion_tokens").to_string(),
            note.unwrap_or_default(),
        ]
    }));
    let mut lines = columns(&table);
    let rows_of = |day: &'_ Value| day.get("rows").and_then(Value::as_array).cloned().unwrap_or_default();
    let Some(latest) = days.iter().find(|day| !rows_of(day).is_empty()) else { return lines };
    lines.push(String::new());
    lines.push(format!("on {}:", text_at(latest, "/date")));
    let mut table =
        vec![["UPLINK", "MODEL", "SOURCE", "ATTEMPTS", "UNCLEAR", "USD", "NOTE"].map(str::to_owned).to_vec()];
    table.extend(rows_of(latest).iter().map(|row| {
        let assumed = row.get("assumed_price").and_then(Value::as_bool) == Some(true);
        let mut cells = ["/uplink", "/model", "/source"].map(|field| text_at(row, field)).to_vec();
        cells.extend(["/attempts", "/unclear"].map(|field| count_at(row, field).to_string()));
        cells.extend([usd(row), if assumed { "assumed price" } else { "" }.to_owned()]);
        cells
    }));
    lines.extend(columns(&table));
    lines
}

fn usd(value: &Value) -> String {
    format!("{:.4}", number_at(value, "/usd").unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn days_and_the_latest_rows_are_shown() {
        let row = json!({"uplink": "sim", "model": "gpt-4o", "source": "uid:0", "attempts": 3, "unclear": 1, "usd": 0.5,
                         "assumed_price": true});
        let spend = json!({"days": [
            {"date": "2026-11-21", "usd": 0.75, "prompt_tokens": 10, "completion_tokens": 20, "crashed_usd": 0.25,
             "rows": [row]},
            {"date": "2026-11-20", "usd": 0.0, "rows": []},
        ]});
        let text = render(&spend).join("\n");
        for part in ["2026-11-21  0.7500  10", "0.2500 of it taken before a crash", "on 2026-11-21:", "assumed price"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(render(&json!({})).len(), 1);
    }
}
