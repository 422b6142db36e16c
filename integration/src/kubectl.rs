//! kubectl, as an independent client of the lab's API server.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::{Environment, Output};
use crate::place::Place;
use crate::sandbox;

/// kubectl for one API server, run on the operator's machine.
#[derive(Debug)]
pub struct Kubectl {
    place: Place,
    url: String,
}

impl Kubectl {
    /// For the server at `url`.
    pub fn new(url: &str) -> Self {
        Self {
            place: Place::sandbox(),
            url: url.to_owned(),
        }
    }

    /// Runs it to its end, whatever its status, with an object as its input where it asks for one (`-f -`).
    pub fn exec(&self, arguments: &[&str], input: Option<&Value>) -> Result<Output> {
        let cache = format!("--cache-dir={}/kubectl", sandbox::SCRATCH);
        let server = format!("--server={}", self.url);
        let argv = [&["kubectl", server.as_str(), cache.as_str()], arguments].concat();
        let stdin = input.map(ToString::to_string).unwrap_or_default();
        let env = Environment {
            set: vec![
                ("KUBECONFIG".to_owned(), "/dev/null".to_owned()),
                ("HOME".to_owned(), sandbox::SCRATCH.to_owned()),
            ],
            ..Environment::default()
        };
        self.place.exec_with(&argv, stdin.as_bytes(), &env)
    }

    /// Runs it, and it must succeed; its output.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.exec(arguments, None)?.ok()
    }

    /// `kubectl create`, and where the object is there already `kubectl replace`.
    pub fn write(&self, object: &Value) -> Result<()> {
        let create = self.exec(&["create", "--validate=false", "-f", "-"], Some(object))?;
        if create.stderr.contains("already exists") {
            return self
                .exec(&["replace", "--validate=false", "-f", "-"], Some(object))?
                .ok()
                .map(drop);
        }
        create.ok().map(drop)
    }

    /// `kubectl get … -o json`.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl printed no JSON: {text}"))
    }
}
