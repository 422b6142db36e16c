//! `flannelctl service endpoint register`: endpoints that live and die with their registrants.

use anyhow::{Context, Result, ensure};
use flannel_lab::command::Environment;
use flannel_lab::{Flanneld, Lab, LabOptions, Pod, Process, eventually, limit, sandbox};
use rustix::process::Signal;

use super::common::await_ping;

const SERVICES: &str = "/coreos.com/network/services/v1/";
const VIP: &str = "10.96.0.10:80";

/// A node with a client, two pods that serve, and a Service without endpoints.
struct Shop {
    lab: Lab,
    daemon: Flanneld,
    client: Pod,
    servers: Vec<Pod>,
    _responders: Vec<Process>,
}

impl Shop {
    fn open() -> Result<Self> {
        let lab = Lab::new(&LabOptions::nodes(1))?;
        let node = lab.node(1)?;
        let daemon = node.start_ready_flanneld(&["--ip-masq", "--service-mode=nftables"])?;
        let client = node.add_pod("client")?;
        let servers = vec![node.add_pod("web1")?, node.add_pod("web2")?];
        let responders = servers.iter().map(|s| s.respond(8080)).collect::<Result<_>>()?;
        for server in &servers {
            await_ping(&client, server.ip())?;
        }
        let put = |key: &str, value: &str| lab.etcd().put(&format!("{SERVICES}{key}"), value);
        put("config", r#"{"cidrs":["10.96.0.0/16"]}"#)?;
        put(
            "spec/shop/web",
            r#"{"clusterIP":"10.96.0.10","ports":[{"name":"http","port":80}]}"#,
        )?;
        Ok(Self {
            lab,
            daemon,
            client,
            servers,
            _responders: responders,
        })
    }

    /// Starts a registrant of the endpoint on pod `n`.
    fn register(&self, n: usize, more: &[&str]) -> Result<Process> {
        let program = format!("{}/flannelctl", sandbox::BINARIES);
        let endpoints = format!("--etcd-endpoints={}", flannel_lab::etcd::ENDPOINT);
        let address = format!("{}:8080", self.servers[n].ip());
        let fixed = [
            program.as_str(),
            "--etcd-insecure",
            endpoints.as_str(),
            "service",
            "endpoint",
            "register",
            "shop/web",
            address.as_str(),
            "--port-name=http",
        ];
        let argv = [&fixed, more].concat();
        let log = format!("registrant-{n}");
        self.lab.operator().spawn(&log, &argv, &Environment::default())
    }

    /// Waits until exactly these servers answer; none means that clients are refused.
    fn await_answers(&self, expected: &[&str]) -> Result<()> {
        eventually(limit(30), &format!("answers of {expected:?}"), || {
            let answers = self.client.ask_many("tcp", VIP, 12)?;
            if expected.is_empty() {
                let refused = |a: &Result<String, String>| matches!(a, Err(e) if e.contains("refused"));
                ensure!(answers.iter().all(refused), "{answers:?}");
                return Ok(());
            }
            let mut seen = Vec::new();
            for answer in answers {
                let text = answer.map_err(anyhow::Error::msg)?;
                seen.push(text.split(' ').next().unwrap_or_default().to_owned());
            }
            seen.sort();
            seen.dedup();
            ensure!(seen == expected, "{seen:?}");
            Ok(())
        })
    }

    fn key(&self, n: usize) -> String {
        format!("{SERVICES}endpoints/shop/web/http/{}:8080", self.servers[n].ip())
    }
}

pub fn dies_with_its_registrant() -> Result<()> {
    let mut shop = Shop::open()?;
    shop.await_answers(&[])?;
    let mut first = shop.register(0, &["--ttl=4"])?;
    let mut second = shop.register(1, &["--ttl=4"])?;
    shop.await_answers(&["web1", "web2"])?;
    let lease = shop.lab.etcd().get(&shop.key(0))?.context("no key")?.lease;
    ensure!(lease != 0, "the key has no lease");
    // a registrant that dies takes its endpoint with it after its time to live
    first.kill()?;
    shop.await_answers(&["web2"])?;
    ensure!(shop.lab.etcd().lease_ttl(lease)? <= 0, "the lease lives on");
    // one that is asked to end does so at once
    second.signal(Signal::TERM)?;
    ensure!(second.wait(limit(10))?.success(), "{}", second.log_text()?);
    ensure!(shop.lab.etcd().get(&shop.key(1))?.is_none(), "the key is there");
    shop.await_answers(&[])?;
    shop.daemon.check_running()
}

pub fn outlives_etcd_and_drains() -> Result<()> {
    let mut shop = Shop::open()?;
    let mut first = shop.register(0, &["--ttl=4", "--drain=60"])?;
    let _second = shop.register(1, &["--ttl=4"])?;
    shop.await_answers(&["web1", "web2"])?;
    shop.lab.etcd_mut().stop()?;
    eventually(limit(20), "an outage to be told", || {
        ensure!(
            first.log_text()?.contains("trying again"),
            "{}",
            first.log_text()?
        );
        Ok(())
    })?;
    shop.await_answers(&["web1", "web2"])?;
    shop.lab.etcd_mut().start()?;
    eventually(limit(30), "the endpoint under etcd's new start", || {
        let text = first.log_text()?;
        ensure!(
            text.contains("etcd answers again") || text.contains("registered again"),
            "{text}"
        );
        let entry = shop.lab.etcd().get(&shop.key(0))?.context("no key")?;
        ensure!(shop.lab.etcd().lease_ttl(entry.lease)? > 0, "no lease");
        Ok(())
    })?;
    // on its way out: no new connections while the other one is ready
    first.signal(Signal::TERM)?;
    shop.await_answers(&["web2"])?;
    let entry = shop
        .lab
        .etcd()
        .get(&shop.key(0))?
        .context("gone before its drain")?;
    ensure!(entry.value.contains("terminating"), "{}", entry.value);
    // a second signal ends the wait
    first.signal(Signal::TERM)?;
    ensure!(first.wait(limit(10))?.success(), "{}", first.log_text()?);
    ensure!(shop.lab.etcd().get(&shop.key(0))?.is_none(), "the key is there");
    shop.daemon.check_running()
}
