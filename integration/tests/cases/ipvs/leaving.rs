//! Endpoints that go: connections that may end, flows that must.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_lab::clock::throughout;
use flannel_lab::held::Held;
use flannel_lab::{Environment, Pinger, PingerReport, Pod, eventually, limit};
use serde_json::json;

use super::super::flows::UdpFlow;
use super::stand::{LINES, PORT, Stand, VIP, config, real_servers, web};

/// The bound of a drain that goes on in a new process: a slow machine must start it in what is left, and tell that from all of it.
const BOUND: Duration = Duration::from_secs(24);

/// A real server that goes takes no new connections and keeps those it has: through a crash, until its time is up, or until it is back.
pub fn connections_drain_within_a_bound_that_a_crash_does_not_end() -> Result<()> {
    let mut config = config();
    config["drainTimeout"] = json!(12);
    let mut stand = Stand::serving(&config)?;
    let lines = "TCP 10.96.0.10:81 rr";
    let open = Held::open(&stand.client, "10.96.0.10:81", 10)?;
    stand.endpoints("web", &[0])?;
    stand.await_servers(lines, &[(0, LINES, 1), (1, LINES, 0)])?;
    // nobody was connected to this one
    stand.await_servers("TCP 10.96.0.10:80 rr", &[(0, PORT, 1)])?;
    // back before its time: as if nothing had been
    stand.endpoints("web", &[0, 1])?;
    stand.await_servers(lines, &[(0, LINES, 1), (1, LINES, 1)])?;
    throughout(Duration::from_secs(13), "a real server that is back", || {
        let seen = real_servers(stand.node()?, lines)?;
        ensure!(
            seen.len() == 2 && !seen.iter().any(|s| s.ends_with(" 0")),
            "{seen:?}"
        );
        Ok(())
    })?;
    config["drainTimeout"] = json!(BOUND.as_secs());
    stand.put("config", &config)?;
    // one pass takes both in: the config is the older change
    let begin = Instant::now();
    stand.endpoints("web", &[0])?;
    stand.await_servers(lines, &[(0, LINES, 1), (1, LINES, 0)])?;
    std::thread::sleep(Duration::from_secs(10));
    stand.crash()?;
    let restarted = Instant::now();
    stand.start()?;
    let report = open.close()?;
    assert_eq!((report.broken, report.servers.len()), (0, 2), "{report:?}");
    // The kernel remembers closed connections for two minutes more; the bound is shorter, and the same for open ones.
    let still = Held::open(&stand.client, "10.96.0.10:81", 4)?;
    stand.await_servers(lines, &[(0, LINES, 1)])?;
    let (took, since) = (begin.elapsed(), restarted.elapsed());
    ensure!(
        took >= BOUND && since < BOUND,
        "it went after {took:?}, {since:?} after the restart: a new process goes on with what was left of {BOUND:?}"
    );
    let report = still.close()?;
    assert_eq!((report.broken, report.servers), (0, vec!["one".to_owned()]));
    Ok(())
}

/// Clients of UDP and SCTP whose endpoint goes get another one with their next packet, and no other flow is touched.
pub fn flows_to_an_endpoint_that_is_gone_end_and_no_others() -> Result<()> {
    let stand = Stand::serving(&config())?;
    let node = stand.node()?;
    stand.put("spec/shop/other", &web("10.96.0.11"))?;
    stand.endpoints("other", &[1])?;
    stand.await_servers("UDP 10.96.0.11:53 rr", &[(1, PORT, 1)])?;
    // by turns to both pods, another Service's to the second, and one to the second without a Service
    let direct = format!("{}:{PORT}", stand.pods[1].ip());
    let mut streams = Vec::new();
    for address in [
        "10.96.0.10:53",
        "10.96.0.10:53",
        "10.96.0.10:53",
        "10.96.0.10:53",
        "10.96.0.11:53",
        &direct,
    ] {
        streams.push(Pinger::to(&stand.client, address)?);
    }
    let (one, two) = (stand.pods[0].ip(), stand.pods[1].ip());
    let ids = |fits: &dyn Fn(&UdpFlow) -> bool| -> Result<BTreeSet<String>> {
        let flows = UdpFlow::all(node, true)?.into_iter();
        Ok(flows.filter(fits).map(|flow| flow.id).collect())
    };
    let through = |service: &str, pod: &str| ids(&|flow| flow.is_through(service, pod));
    let without_service = || ids(&|flow| flow.is_direct(stand.client.ip(), two));
    let (to_one, of_other, of_none) = eventually(limit(20), "six flows", || {
        let to_two = through(VIP, two)?.len();
        let others = (
            through(VIP, one)?,
            through("10.96.0.11", two)?,
            without_service()?,
        );
        let counts = (others.0.len(), to_two, others.1.len(), others.2.len());
        let all = UdpFlow::all(node, true)?;
        ensure!(counts == (2, 2, 1, 1), "{counts:?}: {all:#?}");
        Ok(others)
    })?;
    stand.endpoints("web", &[0])?;
    stand.await_servers("UDP 10.96.0.10:53 rr", &[(0, PORT, 1)])?;
    eventually(limit(20), "the flows to move", || {
        let (now, gone) = (through(VIP, one)?, through(VIP, two)?);
        ensure!(
            gone.is_empty() && now.len() == 4,
            "{gone:?} still there, {now:?} at the first"
        );
        // Those that moved may get their old numbers again: the kernel makes them from where a flow lies in memory.
        ensure!(now.is_superset(&to_one), "{now:?} of {to_one:?}");
        Ok(())
    })?;
    assert_eq!(through("10.96.0.11", two)?, of_other, "another Service's");
    assert_eq!(without_service()?, of_none, "without a Service");
    streams.iter().try_for_each(Pinger::mark)?;
    let reports: Vec<PingerReport> = streams.into_iter().map(Pinger::stop).collect::<Result<_>>()?;
    // Two of the four had to move. What was under way then may be lost, and on a machine that stands still for a while that is much.
    let whole = reports.iter().filter(|report| report.lost.is_empty()).count();
    ensure!(whole >= 4, "streams that did not move lost packets: {reports:#?}");
    for (n, report) in reports.iter().enumerate() {
        let mark = report.mark.context("a stream was not marked")?;
        let late = report.lost.iter().any(|number| *number >= mark);
        ensure!(
            !late && (n < 4 || report.lost.is_empty()),
            "stream {n}: {report:?}"
        );
    }
    sctp_moves(&stand)
}

/// The same with an association, whose next one goes to the endpoint that is left.
fn sctp_moves(stand: &Stand) -> Result<()> {
    let listen = |pod: &Pod| {
        let answer = format!("SYSTEM:echo {}; sleep 60", pod.name());
        pod.spawn(
            "sctp",
            &["socat", "SCTP-LISTEN:9000,fork,reuseaddr", &answer],
            &Environment::default(),
        )
    };
    let _servers = [listen(&stand.pods[0])?, listen(&stand.pods[1])?];
    let spec = json!({"clusterIP": "10.96.0.12", "ports": [{"port": 90, "protocol": "SCTP"}]});
    stand.put("spec/shop/stream", &spec)?;
    let endpoint = |n: usize| format!("endpoints/shop/stream/-/{}:9000", stand.pods[n].ip());
    stand.put(&endpoint(1), &json!({}))?;
    stand.await_servers("SCTP 10.96.0.12:90 rr", &[(1, 9000, 1)])?;
    let _association = stand.client.spawn(
        "association",
        &["sh", "-c", "sleep 60 | socat - SCTP:10.96.0.12:90"],
        &Environment::default(),
    )?;
    let flows = || -> Result<usize> {
        let text = stand.node()?.run(&["conntrack", "-L", "-p", "sctp"])?;
        Ok(text
            .lines()
            .filter(|l| l.contains("dst=10.96.0.12 ") && l.contains(&format!("src={} ", stand.pods[1].ip())))
            .count())
    };
    eventually(limit(20), "an association", || {
        ensure!(flows()? == 1, "{}", flows()?);
        Ok(())
    })?;
    stand.put(&endpoint(0), &json!({}))?;
    stand.delete(&endpoint(1))?;
    stand.await_servers("SCTP 10.96.0.12:90 rr", &[(0, 9000, 1)])?;
    eventually(limit(20), "its flow to end", || {
        ensure!(flows()? == 0, "it is still tracked");
        Ok(())
    })
}
