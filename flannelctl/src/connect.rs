//! From the command line to a store.

use std::net::IpAddr;

use flannel_store::{EtcdOptions, EtcdStore, Password, Secret, endpoint_address};

use crate::cli::EtcdArguments;
use crate::failure::Failure;

/// The variable from which flanneld reads the password.
const PASSWORD_VARIABLE: &str = "FLANNELD_ETCD_PASSWORD";

/// A client for the given options; nothing is sent yet.
pub fn store(arguments: &EtcdArguments) -> Result<EtcdStore, Failure> {
    let environment = std::env::var(PASSWORD_VARIABLE).ok();
    Ok(EtcdStore::connect(options(arguments, environment))?)
}

/// The addresses of etcd, as far as they are not names.
pub fn addresses(arguments: &EtcdArguments) -> Vec<IpAddr> {
    let endpoints = options(arguments, None).endpoints;
    endpoints
        .iter()
        .filter_map(|endpoint| endpoint_address(endpoint))
        .collect()
}

/// Empty texts count as not given: flanneld ignores empty environment variables.
fn options(arguments: &EtcdArguments, environment: Option<String>) -> EtcdOptions {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let default = EtcdOptions::default();
    let endpoints = match arguments.etcd_endpoints.as_str() {
        "" => default.endpoints.clone(),
        text => EtcdOptions::endpoint_list(text),
    };
    let username = given(&arguments.etcd_username);
    let password = match given(&arguments.etcd_password_file) {
        Some(file) => Some(Password::File(file.into())),
        // The variable may be set for other nodes' sake; without a user it means nothing.
        None if username.is_some() => environment
            .filter(|text| !text.is_empty())
            .map(|text| Password::Text(Secret::new(text))),
        None => None,
    };
    EtcdOptions {
        endpoints,
        ca_file: given(&arguments.etcd_cafile).map(Into::into),
        cert_file: given(&arguments.etcd_certfile).map(Into::into),
        key_file: given(&arguments.etcd_keyfile).map(Into::into),
        username,
        password,
        insecure: arguments.etcd_insecure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Arguments;
    use clap::Parser;

    fn parse(line: &str) -> EtcdArguments {
        Arguments::try_parse_from(line.split(' ')).unwrap().etcd
    }

    #[test]
    fn empty_texts_are_not_given() {
        let arguments =
            parse("flannelctl --etcd-endpoints= --etcd-cafile= --etcd-username= --etcd-prefix= subnets");
        let options = options(&arguments, Some("unused".to_owned()));
        assert_eq!(options, EtcdOptions::default());
        assert_eq!(arguments.prefix().to_string(), "/coreos.com/network");
    }

    #[test]
    fn the_password_comes_from_a_file_or_the_environment() {
        let with_file = "flannelctl --etcd-username u --etcd-password-file /run/password subnets";
        let environment = Some("from environment".to_owned());
        let password = |line: &str| options(&parse(line), environment.clone()).password;
        assert_eq!(password(with_file), Some(Password::File("/run/password".into())));
        let text = Password::Text(Secret::new("from environment"));
        assert_eq!(password("flannelctl --etcd-username u subnets"), Some(text));
        assert_eq!(password("flannelctl subnets"), None);
        let missing = parse("flannelctl --etcd-username u --etcd-password-file /nonexistent subnets");
        let Err(Failure::Usage(error)) = store(&missing) else {
            panic!("a missing file is taken");
        };
        assert!(error.to_string().contains("/nonexistent"), "{error}");
    }
}
