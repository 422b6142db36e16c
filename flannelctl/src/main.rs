//! `flannelctl`: shows and changes what a flannel network keeps in etcd.

mod check_config;
mod cleanup;
mod cli;
mod config;
mod connect;
mod difference;
mod doctor;
mod explain;
mod failure;
mod findings;
mod generate;
mod node;
mod output;
mod peers;
mod services;
mod status;
mod subnets;

use std::process::ExitCode;

use clap::Parser;

use cli::{
    Arguments, Command, ConfigCommand, EndpointCommand, Format, NodeArguments, ServiceCommand,
    SubnetsCommand, Target,
};
use failure::Failure;
use flannel_model::EtcdPrefix;
use flannel_store::Store;
use output::Output;
use subnets::Reservation;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return failure::of_arguments(&error),
    };
    let mut output = Output::new(arguments.output);
    let result = run(&arguments, &mut output);
    // What was found out is shown even when something failed.
    let result = output.write().map_err(Failure::from).and(result);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(arguments: &Arguments, output: &mut Output) -> Result<(), Failure> {
    match &arguments.command {
        Command::Completions { shell } => generate::completions(*shell, output),
        Command::Man { dir } => generate::man(dir.as_deref(), output),
        Command::CheckConfig {
            file: Some(file),
            etcd: false,
            ipv6_only,
        } => check_config::file(file, *ipv6_only, output),
        Command::Cleanup(arguments) => cleanup::run(arguments),
        other => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(with_etcd(other, arguments, output))
        }
    }
}

async fn with_etcd(command: &Command, arguments: &Arguments, output: &mut Output) -> Result<(), Failure> {
    let store = connect::store(&arguments.etcd)?;
    let prefix = arguments.etcd.prefix();
    let asker = services::Asker {
        store: &store,
        prefix: &prefix,
    };
    let etcd = connect::addresses(&arguments.etcd);
    match command {
        Command::Subnets { command } => {
            let format = arguments.output;
            with_subnets(command.as_ref(), &store, &prefix, format, output).await
        }
        Command::CheckConfig { file, ipv6_only, .. } => {
            check_config::with_etcd(&store, &prefix, file.as_deref(), *ipv6_only, output).await
        }
        Command::Doctor {
            subnet_file,
            state_dir,
        } => {
            let paths = doctor::Paths {
                subnet_file,
                state_dir,
            };
            doctor::run(&store, &prefix, paths, output).await
        }
        Command::Config { command: None } => config::show(&store, &prefix, output).await,
        Command::Config {
            command: Some(ConfigCommand::Set { file, force }),
        } => config::set(&store, &prefix, file, *force, output).await,
        Command::Peers(node) => peers::show(of_node(node, &asker, &etcd), output).await,
        Command::Diff(node) => difference::diff(of_node(node, &asker, &etcd), output).await,
        Command::Plan { node, .. } => difference::plan(of_node(node, &asker, &etcd), output).await,
        Command::Status(socket) => status::show(socket, output).await,
        Command::Services(arguments) => services::show(asker, arguments, output).await,
        Command::Explain(arguments) => match arguments.address {
            Target::Port(at) => services::explain(asker, at, arguments, output).await,
            Target::Address(address) => {
                explain::run(of_node(&arguments.node, &asker, &etcd), address, output).await
            }
        },
        Command::Service {
            command: ServiceCommand::Apply { files },
        } => services::apply(&store, &prefix, files, output).await,
        Command::Service {
            command: ServiceCommand::Delete { names, files },
        } => match names.as_slice() {
            [] => services::delete_files(&store, &prefix, files, output).await,
            names => services::delete_named(&store, &prefix, names, output).await,
        },
        Command::Service {
            command:
                ServiceCommand::Endpoint {
                    command: EndpointCommand::Register(arguments),
                },
        } => services::register(&store, &prefix, arguments).await,
        Command::Cleanup(_) | Command::Completions { .. } | Command::Man { .. } => Ok(()),
    }
}

fn of_node<'a, S>(
    node: &'a NodeArguments,
    asker: &services::Asker<'a, S>,
    etcd: &'a [std::net::IpAddr],
) -> node::Asked<'a, S> {
    node::Asked {
        store: asker.store,
        prefix: asker.prefix,
        etcd,
        subnet_file: &node.subnet_file,
    }
}

async fn with_subnets<S: Store>(
    command: Option<&SubnetsCommand>,
    store: &S,
    prefix: &EtcdPrefix,
    format: Format,
    output: &mut Output,
) -> Result<(), Failure> {
    match command {
        None => subnets::list(store, prefix, output).await,
        Some(SubnetsCommand::Map) => subnets::map(store, prefix, output).await,
        Some(SubnetsCommand::Show { subnet }) => subnets::one(store, prefix, subnet, output).await,
        Some(SubnetsCommand::Watch { timeout }) => subnets::watch(store, prefix, *timeout, format).await,
        Some(SubnetsCommand::Reserve {
            subnet,
            public_ip,
            public_ipv6,
        }) => {
            let wanted = Reservation {
                subnet,
                public_ip: *public_ip,
                public_ipv6: *public_ipv6,
            };
            subnets::reserve(store, prefix, &wanted, output).await
        }
        Some(SubnetsCommand::Release { subnet, force }) => {
            subnets::release(store, prefix, subnet, *force, output).await
        }
    }
}
