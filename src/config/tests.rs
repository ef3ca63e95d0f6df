//! What a configuration file may rely on: defaults, every kind of fault, layers, origins.

use super::*;

/// Every key and default, as `config show` prints them. A change here is a breaking change.
const FROZEN: &str = r#"
gateway.data_dir = "./holdfast-data"
gateway.stop_grace = "10s"
http.socket = "./holdfast-data/holdfast.sock"
http.socket_mode = "0660"
http.listen = []
http.token_file = ""
http.tls_cert = ""
http.tls_key = ""
http.allowed_origins = []
http.allowed_hosts = []
http.max_body = "32MiB"
http.max_in_flight = 256
uplink[0].name = "holysheep"
uplink[0].base_url = "https://api.holysheep.ai/v1"
uplink[0].api_keys[0].env = "HOLYSHEEP_API_KEY"
uplink[0].auth = "bearer"
uplink[0].priority = 1
uplink[0].weight = 1
uplink[0].max_in_flight = 32
uplink[0].free = false
uplink[0].ca_file = ""
uplink[0].models = {}
uplink[0].probe.path = "/models"
uplink[0].probe.interval = "2s"
uplink[0].probe.timeout = "1s"
uplink[0].probe.fall = 3
uplink[0].probe.rise = 1
uplink[0].probe.degraded_above = "1500ms"
uplink[0].breaker.failures = 3
uplink[0].breaker.open_for = "30s"
uplink[0].timeouts.connect = "2s"
uplink[0].timeouts.first_byte = "30s"
uplink[0].timeouts.idle = "30s"
uplink[0].timeouts.total = "120s"
local.base_url = "http://127.0.0.1:11434"
local.api = "ollama"
local.model = "llama3.2:latest"
local.vision_model = ""
local.models = {}
local.max_in_flight = 1
local.keep_warm = "degraded"
local.timeouts.connect = "1s"
local.timeouts.first_token = "120s"
local.timeouts.idle = "20s"
local.timeouts.total = "300s"
local.max_temperature_c = 80
routing.strategy = "priority"
routing.offline = "both"
queue.max_bytes = "1GiB"
queue.max_requests = 100000
queue.min_disk_free = "64MiB"
queue.when_full = "reject"
queue.ttl = "72h"
queue.max_attempts = 8
queue.keep_results = "7d"
queue.keep_results_bytes = "256MiB"
drain.max_in_flight = 4
drain.start_jitter = "5s"
retry.attempts = 3
retry.base = "500ms"
retry.max = "60s"
retry.budget = 0.2
retry.on_unknown = "resend"
cache.ttl = "5m"
cache.offline_stale = "24h"
cache.max_bytes = "64MiB"
cache.shared = false
limits.rate = 10
limits.burst = 50
limits.per_source_backlog = 10000
budget.usd_per_day = 0.0
model = []
auto = []
task = []
link = []
log.level = "info"
log.format = "auto"
"#;

fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Loads `text` as the file `hf.toml`; faults name it without its folder.
fn load_text(text: &str, environment: &[(&str, &str)]) -> Result<Loaded, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hf.toml");
    std::fs::write(&path, text).unwrap();
    let prefix = format!("{}/", folder.path().display());
    load(Some(&path), variables(environment)).map_err(|faults| faults.to_string().replace(&prefix, ""))
}

fn faults(text: &str) -> String {
    load_text(text, &[]).expect_err("there are faults")
}

fn origin(loaded: &Loaded, key: &str) -> String {
    let shown = loaded.origins.iter().find(|shown| shown.key == key).expect(key);
    let origin = shown.origin.to_string();
    origin.rsplit('/').next().unwrap().to_owned()
}

fn sources(uplink: &Uplink) -> Vec<KeySource> {
    uplink.api_keys.iter().map(|key| key.source.clone()).collect()
}

#[test]
fn no_file_at_all_is_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let (loaded, faults) = read(None, &[], folder.path());
    assert_eq!(faults, Faults::default());
    let lines = loaded.origins.iter().filter(|shown| shown.key != "gateway.device_id");
    let lines: Vec<String> = lines.map(|shown| format!("{} = {}", shown.key, shown.value)).collect();
    assert_eq!(lines.join("\n"), FROZEN.trim());
    assert!(loaded.origins.iter().all(|shown| shown.origin == Origin::Default));
    assert!(!loaded.settings.gateway.device_id.is_empty());
}

#[test]
fn an_empty_file_is_an_installed_gateway_with_the_same_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let mut expected = read(None, &[], folder.path()).0.settings;
    expected.gateway.data_dir = "/var/lib/holdfast".into();
    expected.http.socket = "/run/holdfast/holdfast.sock".into();
    assert_eq!(load_text("", &[]).unwrap().settings, expected);
}

#[test]
fn defaults_have_the_meaning_of_their_text() {
    let Settings { http, uplinks, queue, retry, .. } = load_text("", &[]).unwrap().settings;
    assert_eq!((http.max_body, http.socket_mode), (32 << 20, 0o660));
    assert_eq!(queue.ttl.as_secs(), 72 * 3600);
    assert_eq!((queue.max_bytes, queue.keep_results.as_secs()), (1 << 30, 7 * 86_400));
    assert_eq!(retry.base.as_millis(), 500);
    assert_eq!(uplinks[0].probe.degraded_above.as_millis(), 1500);
    assert_eq!(sources(&uplinks[0]), [KeySource::Env("HOLYSHEEP_API_KEY".to_owned())]);
}

#[test]
fn an_example_of_every_section_is_accepted() {
    let text = r#"
[gateway]
device_id = "line3-gw1"
[[uplink]]
name = "holysheep"
models = { "gpt-4o" = "deepseek-v3.2" }
probe = { path = "/models", interval = "2s", timeout = "1s", fall = 3, rise = 1, degraded_above = "1500ms" }
[[uplink]]
name = "second"
base_url = "https://second.example/v1/"
api_keys = [{ file = "/etc/key" }, { credential = "key2", max_in_flight = 3 }]
auth = "api-key"
[local]
models = { "text-embedding-3-small" = "nomic-embed-text" }
[[model]]
name = "deepseek-v3.2"
usd_per_mtok_in = 0.42
usd_per_mtok_out = 0.42
[[task]]
id = 3
name = "weld-inspection"
model = "gpt-4.1"
system = "…"
prompt = "Temp {temp} °C, current {amps} A. …"
offline = "both"
max_answer = 200
pictures = 1
codes = { "OK" = 0, "NOK" = -1 }
args = [{ name = "temp", type = "number", min = -40 }, { name = "amps" }]
[[link]]
name = "plc1"
device = "/dev/ttyAMA0"
baud = 115200
protocol = "frames"
[limits]
per_source_backlog = 5
"#;
    let loaded = load_text(text, &[]).unwrap();
    let second = &loaded.settings.uplinks[1];
    assert_eq!(second.base_url, "https://second.example/v1");
    assert_eq!(second.api_keys[1].max_in_flight, Some(3));
    assert_eq!(sources(second), [KeySource::File("/etc/key".into()), KeySource::Credential("key2".to_owned())]);
    assert_eq!(second.auth, Auth::ApiKey);
    assert_eq!(loaded.settings.tasks[0].id, 3);
    assert_eq!(loaded.settings.tasks[0].args[0].min, Some(-40.0));
    assert_eq!(origin(&loaded, "uplink[0].models"), "hf.toml:6");
}

#[test]
fn no_uplink_is_legal_and_others_get_no_default_key() {
    assert!(load_text("uplink = []", &[]).unwrap().settings.uplinks.is_empty());
    let loaded = load_text("[[uplink]]\nname = \"b\"\nbase_url = \"http://b\"", &[]).unwrap();
    assert!(loaded.settings.uplinks[0].api_keys.is_empty());
}

#[test]
fn all_faults_are_reported_at_once_with_file_line_and_key() {
    let text = r#"
[gateway]
stop_grase = "10s"
[http]
max_body = "5 lorries"
socket_mode = 660
listen = ["127.0.0.1:80", "everywhere"]
[[uplink]]
prio = 2
base_url = "ftp://x"
auth = "baerer"
[[uplink]]
name = "holysheep"
probe = { fall = 0, interval = 2 }
[[uplink]]
name = "third"
[queue]
max_requests = -1
ttl = "yesterday"
[retry]
budget = "lots"
base = "2m"
[quue]
"#;
    let expected = r#"
hf.toml:3: gateway.stop_grase: unknown key; did you mean "stop_grace"?
hf.toml:5: http.max_body: "5 lorries" is not a size; write a number and a unit, such as "64KiB", "16MiB" or "1GiB"
hf.toml:6: http.socket_mode: expected permission bits in quotes, such as "0660", got an integer
hf.toml:7: http.listen[1]: "everywhere" is not an address; write an IP address and a port, such as "127.0.0.1:8080" or "[::1]:8080"
hf.toml:9: uplink[0].prio: unknown key; did you mean "priority"?
hf.toml:10: uplink[0].base_url: "ftp://x" does not begin with http:// or https://; write one such as "https://api.example/v1"
hf.toml:11: uplink[0].auth: "baerer" is none of bearer, api-key; did you mean "bearer"?
hf.toml:13: uplink[1].name: uplink[0] is called "holysheep" too; give each a name of its own
hf.toml:14: uplink[1].probe.fall: must be between 1 and 1000, got 0
hf.toml:14: uplink[1].probe.interval: expected a duration in quotes, such as "2s", got an integer
hf.toml:15: uplink[2].base_url: missing; write where this uplink is, such as base_url = "https://api.example/v1"
hf.toml:18: queue.max_requests: must be between 1 and 4294967295, got -1
hf.toml:19: queue.ttl: "yesterday" is not a duration; write a number and a unit, such as "500ms", "2s", "5m", "72h" or "7d"
hf.toml:21: retry.budget: expected a number, got a string
hf.toml:22: retry.base: is longer than max; make base the shortest wait and max the longest
hf.toml:23: quue: unknown key; did you mean "queue"?
"#;
    assert_eq!(faults(text), expected.trim());
}

#[test]
fn a_cap_too_small_to_be_counted_is_no_cap_by_mistake() {
    let told = faults("[budget]\nusd_per_day = 5e-10");
    assert!(told.contains("hf.toml:2: budget.usd_per_day: less than 0.000000001"), "{told}");
    assert!(load_text("[budget]\nusd_per_day = 1e-9", &[]).unwrap().settings.budget.usd_per_day > 0.0);
}

#[test]
fn half_a_price_is_none() {
    for (given, missing) in [("in", "out"), ("out", "in")] {
        let told = faults(&format!("[[model]]\nname = \"m\"\nusd_per_mtok_{given} = 1"));
        assert!(told.contains(&format!("model[0].usd_per_mtok_{missing}: missing; write both prices")), "{told}");
    }
    assert!(load_text("[[model]]\nname = \"m\"\nmax_output_tokens = 5", &[]).is_ok());
}

#[test]
fn an_unlike_key_gets_the_list_of_known_ones() {
    assert_eq!(
        faults("[drain]\nzebra = 1"),
        "hf.toml:2: drain.zebra: unknown key; known here: max_in_flight, start_jitter"
    );
}

#[test]
fn wrong_shapes_are_faults() {
    assert!(faults("queue = 5").contains("hf.toml:1: queue: expected a table, got an integer"));
    assert!(faults("[uplink]\nname = \"holysheep\"").contains("write [[uplink]] with two brackets"));
    assert!(faults("uplink = [1]").contains("expected tables in this array"));
    assert!(faults("[http]\nlisten = \"127.0.0.1:1\"").contains("expected an array of strings"));
    assert!(faults("[local]\nmodels = { a = 1 }").contains("local.models: \"a\": expected a string"));
    assert!(faults("[log]\nlevel = 2020-01-01").contains("got a date"));
    assert!(faults("[queue]\nmax_requests = 1.5").contains("expected a whole number"));
    assert!(faults("[queue]\nmax_requests = 99999999999999999999").contains("an integer that is too large"));
    assert!(faults("[[link]]\nname = 3").lines().any(|line| line.contains("link[0].name: expected a string")));
    assert!(faults("[[task]]\nprompt = \"x\"").contains("task[0].id: missing"));
    assert!(faults("[local]\nmodel = \"\"").contains("turn local answers off"));
    let task = |line: &str| faults(&format!("[[task]]\nid = 1\nprompt = \"{{temp}}\"\n{line}"));
    assert!(task("args = [\"amps\"]").starts_with("hf.toml:3: task[0].prompt: {temp} is none of args (amps)"));
    assert!(task("schema_file = \"nowhere.json\"").contains("hf.toml:4: task[0].schema_file: "));
    assert!(task("max_answer = 9000").contains("hf.toml:4: task[0].max_answer: must be between 1 and 8192"));
    assert!(task("codes = { OK = 1.5 }").contains("task[0].codes: \"OK\": expected a whole number"));
    assert!(task("args = [{ name = \"temp\", type = \"float\" }]").contains("task[0].args[0].type: "));
    assert!(task("[[task]]\nid = 1\nprompt = \"x\"").contains("task[0] has the id \"1\" too"));
}

#[test]
fn text_that_is_no_toml_is_reported_with_line_and_column() {
    let faults = faults("[queue]\nttl = \"1h\"\nmax_bytes = = 3\n[drain\n");
    assert!(faults.starts_with("hf.toml:3:13: "), "{faults}");
    assert!(faults.contains("\nhf.toml:4:"), "{faults}");
}

#[test]
fn a_syntax_error_never_quotes_the_line() {
    assert!(!faults("api_key = \"sk-secret\n").contains("sk-secret"));
}

#[test]
fn keys_of_uplinks_are_named_and_never_written_down() {
    let value = faults("[[uplink]]\napi_keys = [{ value = \"sk-secret\" }]");
    assert!(value.contains("uplink[0].api_keys[0].value: a key is not kept in this file; use { env"), "{value}");
    let name = faults("[[uplink]]\napi_keys = [{ env = \"sk-secret\" }]");
    assert!(name.contains("not the key itself"), "{name}");
    let bare = faults("[[uplink]]\napi_keys = [\"sk-secret\"]");
    assert!(bare.contains("uplink[0].api_keys: a key is not kept in this file; use { env"), "{bare}");
    let url = faults("[[uplink]]\nbase_url = \"https://me:sk-secret@x\"");
    assert!(url.contains("keys belong in api_keys"), "{url}");
    assert!(faults("[[uplink]]\napi_keys = [{}]").contains("has 0 sources"));
    assert!(faults("[[uplink]]\napi_keys = [{ env = \"A\", file = \"b\" }]").contains("has 2 sources"));
    for text in [value, name, bare, url] {
        assert!(!text.contains("sk-secret"), "{text}");
    }
}

#[test]
fn an_address_that_others_reach_needs_tokens_and_tls() {
    let open = faults("[http]\nlisten = [\"0.0.0.0:80\"]\ntls_cert = \"c\"");
    assert!(open.contains("0.0.0.0:80 can be reached by others; set token_file, tls_key too"), "{open}");
    assert!(open.contains("http.tls_key: missing"), "{open}");
    let text = "[http]\nlisten = [\"0.0.0.0:80\"]\ntls_cert = \"c\"\ntls_key = \"k\"\ntoken_file = \"t\"";
    assert!(load_text(text, &[]).is_ok());
}

#[test]
fn the_environment_overrides_and_is_named_as_origin() {
    let text = "[queue]\nttl = \"2h\"\nmax_requests = 5\n[[uplink]]\nname = \"a\"\nbase_url = \"http://a\"";
    let environment = [
        ("HOLDFAST_QUEUE__TTL", "1h"),
        ("HOLDFAST_LOCAL__TIMEOUTS__IDLE", "5s"),
        ("HOLDFAST_UPLINK__0__BASE_URL", "http://b/v1"),
        ("HOLDFAST_UPLINK__0__API_KEYS", "[{ env = \"B\" }]"),
        ("HOLDFAST_UPLINK__1__BASE_URL", "http://c"),
        ("HOLDFAST_UPLINK__1__NAME", "c"),
        ("HOLDFAST_HTTP__LISTEN", "127.0.0.1:1, [::1]:2"),
        ("HOLDFAST_RETRY__BUDGET", "0.5"),
        ("HOLDFAST_DRAIN__MAX_IN_FLIGHT", "9"),
        ("HOLDFAST_SOCKET", "elsewhere"),
        ("HOME", "/root"),
    ];
    let loaded = load_text(text, &environment).unwrap();
    let settings = &loaded.settings;
    assert_eq!((settings.queue.ttl.as_secs(), settings.queue.max_requests), (3600, 5));
    assert_eq!(settings.local.timeouts.idle.as_secs(), 5);
    assert_eq!((settings.uplinks[0].name.as_str(), settings.uplinks[0].base_url.as_str()), ("a", "http://b/v1"));
    assert_eq!(sources(&settings.uplinks[0]), [KeySource::Env("B".to_owned())]);
    assert_eq!(settings.uplinks[1].name, "c");
    assert_eq!(settings.http.listen.len(), 2);
    assert_eq!((settings.retry.budget, settings.drain.max_in_flight), (0.5, 9));
    assert_eq!(origin(&loaded, "queue.ttl"), "environment HOLDFAST_QUEUE__TTL");
    assert_eq!(origin(&loaded, "queue.max_requests"), "hf.toml:3");
    assert_eq!(origin(&loaded, "queue.max_bytes"), "default");
}

#[test]
fn the_built_in_uplink_can_be_overridden_without_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let environment = variables(&[("HOLDFAST_UPLINK__0__BASE_URL", "http://127.0.0.1:9/v1")]);
    let (loaded, faults) = read(None, &environment, folder.path());
    assert_eq!(faults, Faults::default());
    let uplink = &loaded.settings.uplinks[0];
    assert_eq!((uplink.name.as_str(), uplink.base_url.as_str()), ("holysheep", "http://127.0.0.1:9/v1"));
}

#[test]
fn unknown_or_malformed_variables_are_faults() {
    let environment = [
        ("HOLDFAST_QUEUE__TLL", "1h"),
        ("HOLDFAST_QUEUE__TTL", "soon"),
        ("HOLDFAST_UPLINK__4__NAME", "x"),
        ("HOLDFAST_QUEUE__", "x"),
        ("HOLDFAST_ZZZ", "1"),
    ];
    let faults = load_text("", &environment).unwrap_err();
    assert!(
        faults.contains("environment HOLDFAST_QUEUE__TLL: queue.tll: unknown key; did you mean \"ttl\"?"),
        "{faults}"
    );
    assert!(faults.contains("environment HOLDFAST_QUEUE__TTL: queue.ttl: \"soon\" is not a duration"), "{faults}");
    assert!(faults.contains("HOLDFAST_UPLINK__4__NAME: uplink.4.name: there is no such member"), "{faults}");
    assert!(faults.contains("HOLDFAST_QUEUE__: queue.: not the name of a key"), "{faults}");
    assert!(faults.contains("HOLDFAST_ZZZ: zzz: unknown key"), "{faults}");
}

#[test]
fn installed_files_are_layered_later_ones_winning_per_key() {
    let etc = tempfile::tempdir().unwrap();
    std::fs::create_dir(etc.path().join("conf.d")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(etc.path().join(name), text).unwrap();
    write("holdfast.toml", "[queue]\nttl = \"1h\"\nmax_attempts = 2\n[http]\nlisten = [\"127.0.0.1:1\"]");
    write("conf.d/20-b.toml", "[queue]\nttl = \"3h\"");
    write("conf.d/10-a.toml", "[queue]\nttl = \"2h\"\n[http]\nlisten = [\"127.0.0.1:2\"]");
    write("conf.d/99.bak", "nonsense");
    let (loaded, faults) = read(None, &[], etc.path());
    assert_eq!(faults, Faults::default());
    assert_eq!((loaded.settings.queue.ttl.as_secs(), loaded.settings.queue.max_attempts), (3 * 3600, 2));
    assert_eq!(loaded.settings.http.listen, ["127.0.0.1:2".parse().unwrap()]);
    assert_eq!(loaded.settings.gateway.data_dir, Path::new("/var/lib/holdfast"));
    assert_eq!(origin(&loaded, "queue.ttl"), "20-b.toml:2");
    assert_eq!(origin(&loaded, "queue.max_attempts"), "holdfast.toml:3");
    // A file that is named stands alone.
    let named = etc.path().join("conf.d/20-b.toml");
    let (loaded, _) = read(Some(&named), &[], etc.path());
    assert_eq!((loaded.files, loaded.settings.queue.max_attempts), (vec![named], 8));
}

#[test]
fn only_modbus_listens_and_a_link_is_at_one_place() {
    let with = |rest: &str| load_text(&format!("[[link]]\nname = \"press\"\n{rest}\n"), &[]);
    let loaded = with("listen = \"192.0.2.1:502\"\nprotocol = \"modbus\"").unwrap();
    let expected = crate::ingress::link::Place::Listen("192.0.2.1:502".parse().unwrap());
    assert_eq!(loaded.settings.links[0].place, expected);
    for (rest, said) in [
        ("listen = \"192.0.2.1:502\"", "hf.toml:3: link[0].listen: only modbus listens for TCP;"),
        ("listen = \"plc:502\"\nprotocol = \"modbus\"", "hf.toml:3: link[0].listen: 'plc:502' is not ip:port"),
        ("listen = \"[::1]:502\"\nsocket = \"/a\"\nprotocol = \"modbus\"", "link[0].device: write exactly one of"),
    ] {
        let faults = with(rest).unwrap_err();
        assert!(faults.replace('"', "'").contains(said), "{faults}");
        assert_eq!(faults.lines().count(), 1, "{faults}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none.toml");
    let faults = load(Some(&missing), []).unwrap_err().to_string();
    assert!(faults.contains("none.toml: cannot be read: No such file"), "{faults}");
    std::fs::write(&missing, [0xff, 0xfe]).unwrap();
    assert!(load(Some(&missing), []).unwrap_err().to_string().contains("is not UTF-8"));
}

#[test]
fn the_socket_is_known_even_if_the_rest_is_faulty() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hf.toml");
    std::fs::write(&path, "[http]\nsocket = \"/tmp/x.sock\"\n[queue]\nttl = 1").unwrap();
    assert_eq!(socket(Some(&path), []).unwrap(), Path::new("/tmp/x.sock"));
    // A default in its place might be another gateway's.
    for unreadable in ["[http\nsocket = \"/tmp/x.sock\"", "\0"] {
        std::fs::write(&path, unreadable).unwrap();
        assert!(socket(Some(&path), []).is_err());
    }
    assert!(socket(Some(&folder.path().join("none.toml")), []).is_err());
}

#[test]
fn no_value_of_any_key_is_too_strange_to_report() {
    let odd =
        ["1", "-1", "1.5", "nan", "true", "\"x\"", "\"\"", "[]", "[[]]", "[{}]", "{}", "2020-01-01", "0xffffffffffff"];
    for line in FROZEN.trim().lines() {
        let key = line.split(" = ").next().unwrap();
        // An array's member is written through an inline array of one table.
        let key = key.replace("[0].", ".");
        for value in odd {
            let text = format!("{key} = {value}");
            match load_text(&text, &[]) {
                Ok(_) => {}
                Err(faults) => assert!(faults.contains("hf.toml:1"), "{text}: {faults}"),
            }
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_read_or_refused() {
    let whole = "[queue]\nttl = \"1h\"\n[[uplink]]\nname = \"ä\"\nbase_url = 'http://x'\nprobe = { fall = 2 }\n";
    for (end, _) in whole.char_indices() {
        let _ = load_text(&whole[..end], &[]);
    }
}

#[test]
fn rules_for_auto_are_read_in_their_order() {
    let loaded = load_text(
        "[[auto]]\nhas_picture = true\nmodel = \"eyes\"\n\
         [[auto]]\nprompt_bytes_min = \"8KiB\"\npriority = \"low\"\noffline = false\nmodel = \"long\"\n\
         [[auto]]\nmodels = [{ name = \"a\", share = 50 }, { name = \"b\", share = 30 }]\n",
        &[],
    )
    .unwrap();
    let rules = &loaded.settings.auto;
    assert_eq!((rules[0].has_picture, rules[0].prompt_bytes_min), (Some(true), None));
    assert_eq!((rules[1].prompt_bytes_min, rules[1].offline), (Some(8192), Some(false)));
    assert_eq!(rules[2].models.iter().map(|model| model.share).collect::<Vec<_>>(), [50, 30]);
}

#[test]
fn rules_for_auto_that_make_no_sense_are_refused() {
    let last = faults("[[auto]]\nhas_picture = true\nmodel = \"a\"");
    assert!(last.contains("auto[0].model: the last rule must fit every request"), "{last}");
    let first = faults("[[auto]]\nmodel = \"a\"\n[[auto]]\nmodel = \"b\"");
    assert!(first.contains("auto[0].model: this rule fits every request"), "{first}");
    assert!(faults("[[auto]]\noffline = true").contains("names no model"));
    assert!(faults("[[auto]]\nmodel = \"auto\"").contains("cannot stand for itself"));
    assert!(faults("[[auto]]\nmodel = \"a\"\nmodels = [{ name = \"b\" }]").contains("stands beside model"));
    let never = faults("[[auto]]\nprompt_bytes_min = 9\nprompt_bytes_max = 8\nmodel = \"a\"\n[[auto]]\nmodel = \"b\"");
    assert!(never.contains("fits nothing"), "{never}");
}

#[test]
fn files_that_a_start_needs_are_looked_for() {
    let text = "[http]\ntoken_file = \"/nowhere/tokens\"\n[[uplink]]\nname = \"a\"\nbase_url = \"https://a.example/v1\"\n\
        ca_file = \"/nowhere/ca.pem\"\n[[link]]\nname = \"l\"\nsocket = \"/run/l.sock\"\ntoken_file = \"/\"\n\
        [[link]]\nname = \"m\"\nsocket = \"/run/m.sock\"\ntoken_file = \"/dev/null\"\n";
    let loaded = load_text(text, &[]).unwrap();
    let said: Vec<_> = loaded.unusable_files().iter().map(|(fault, _)| fault.to_string()).collect();
    let [tokens, ca, link, empty] = &said[..] else { panic!("{said:?}") };
    assert!(tokens.contains(":2: http.token_file: /nowhere/tokens cannot be read: entity not found"), "{tokens}");
    assert!(ca.contains(":6: uplink[0].ca_file: /nowhere/ca.pem cannot be read"), "{ca}");
    assert!(link.contains("link[0].token_file: / cannot be read: is a directory"), "{link}");
    assert!(empty.contains("link[1].token_file: /dev/null must hold 1 to 64 bytes"), "{empty}");
}

#[test]
fn what_a_start_would_refuse_is_a_fault() {
    let local = |url: &str| faults(&format!("[local]\nbase_url = \"{url}\""));
    assert!(local("https://127.0.0.1:11434").contains(":2: local.base_url: the local model is asked over plain HTTP"));
    assert!(local("127.0.0.1").contains("such as \"http://127.0.0.1:11434\""));
    let twice = faults("[http]\nlisten = [\"127.0.0.1:80\", \"127.0.0.1:81\", \"127.0.0.1:80\"]");
    assert!(twice.contains("http.listen: 127.0.0.1:80 stands there twice; remove number 3"), "{twice}");
    let empty = "[http]\ntoken_file = \"/dev/null\"\ntls_cert = \"/dev/null\"\ntls_key = \"/dev/null\"\n[[uplink]]\nname = \"a\"\n\
        base_url = \"https://a.example/v1\"\nca_file = \"/dev/null\"\n";
    let said: Vec<_> =
        load_text(empty, &[]).unwrap().unusable_files().iter().map(|(fault, _)| fault.to_string()).collect();
    let [tokens, certificate, key, root] = &said[..] else { panic!("{said:?}") };
    assert!(tokens.contains(":2: http.token_file: /dev/null holds no tokens: there is no token in it"), "{tokens}");
    assert!(certificate.contains(":3: http.tls_cert: /dev/null holds no certificate"), "{certificate}");
    assert!(key.contains(":4: http.tls_key: /dev/null holds no private key"), "{key}");
    assert!(root.contains(":8: uplink[0].ca_file: /dev/null holds no certificate"), "{root}");
}

#[test]
fn a_link_has_a_place_of_its_own_that_can_be_listened_at() {
    let link = |name: &str, place: &str| format!("[[link]]\nname = \"{name}\"\n{place}\n");
    let same = "socket = \"/run/l.sock\"";
    assert!(faults(&(link("a", same) + &link("b", same))).contains("link[1].socket: link[0] has the socket"));
    let own = "[http]\nsocket = \"/run/l.sock\"\nlisten = [\"127.0.0.1:502\"]\n".to_owned();
    let said = faults(&(own + &link("a", same) + &link("b", "listen = \"127.0.0.1:502\"\nprotocol = \"modbus\"")));
    assert!(said.contains("link[0].socket: [http] has \"/run/l.sock\" already"), "{said}");
    assert!(said.contains("link[1].listen: [http] has \"127.0.0.1:502\" already"), "{said}");
    let long = format!("socket = \"/{}\"", "x".repeat(107));
    assert!(faults(&link("a", &long)).contains("link[0].socket: is 108 bytes long"));
}

#[test]
fn a_key_file_that_is_not_there_is_told_and_is_no_fault() {
    let text = "[[uplink]]\nname = \"a\"\nbase_url = \"https://a.example/v1\"\napi_keys = [{ file = \"/nowhere/key\" }, { env = \"UNSET\" }]\n";
    let loaded = load_text(text, &[]).unwrap();
    let [(uplink, why)] = &loaded.files_without_key()[..] else { panic!("one file") };
    assert!(uplink == "a" && why.starts_with("file /nowhere/key cannot be read"), "{why}");
}

#[test]
fn every_key_stands_in_the_documents_with_its_default() {
    let text = include_str!("../../docs/configuration.md");
    let blocks = text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let page = load_text(&blocks.collect::<String>(), &[]).unwrap();
    // One that stands in another's place is named beside it.
    let named = |key: &str| text.contains(&format!("{} = ", key.rsplit('.').next().unwrap()));
    let left_out = page.origins.iter().find(|shown| shown.origin == Origin::Default && !named(&shown.key));
    assert!(left_out.is_none(), "{left_out:?}");
    let value = |key: &str| page.origins.iter().find(|shown| shown.key == key).map(|shown| shown.value.clone());
    let mut expected = load_text("", &[]).unwrap().origins;
    // One is each machine's own; of the lists there are examples.
    expected.retain(|shown| !["gateway.device_id", "model", "auto", "task", "link"].contains(&shown.key.as_str()));
    for shown in expected {
        assert_eq!(value(&shown.key), Some(shown.value), "{}", shown.key);
    }
}
