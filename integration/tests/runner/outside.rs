//! The list of tests, as an ordinary test program.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use super::guest::Guest;
use super::{Case, Needs, run_in_sandbox};
use crate::cases;

/// Each lab has an etcd and several daemons: more than this at once only makes them wait for each other.
const AT_ONCE: usize = 2;

/// Runs the tests that the command line asks for.
pub fn run() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(AT_ONCE).min(AT_ONCE));
    let (here, elsewhere): (Vec<Case>, Vec<Case>) =
        cases::all().into_iter().partition(|case| case.needs.are_met());
    let (impossible, guest): (Vec<Case>, Vec<Case>) = elsewhere
        .into_iter()
        .partition(|case| matches!(case.needs, Needs::NoIpvs | Needs::NoWireguard | Needs::NoVlans));
    let mut trials: Vec<Trial> = here.into_iter().map(native).collect();
    trials.extend(impossible.into_iter().map(left_out));
    if arguments.list {
        trials.extend(guest.into_iter().map(native));
    } else {
        // last: the guest then runs beside the end of the list at most
        trials.extend(in_guest(&arguments, &guest));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn native(case: Case) -> Trial {
    Trial::test(case.name, move || run_in_sandbox(&case).map_err(Failed::from))
}

fn left_out(case: Case) -> Trial {
    Trial::ignorable_test(case.name, || {
        Ok(Completion::ignored_with(
            "this kernel has what is to be missing, so it cannot show this",
        ))
    })
}

/// All tests that are asked for run in one boot of one guest, under their own names.
fn in_guest(arguments: &Arguments, cases: &[Case]) -> Vec<Trial> {
    let wanted: Vec<&str> = cases
        .iter()
        .filter(|c| !arguments.is_filtered_out(&Trial::test(c.name, || Ok(()))))
        .map(|c| c.name)
        .collect();
    let (guest, results) = Guest::new(wanted);
    let trial = |(name, result): (String, std::sync::mpsc::Receiver<Result<(), String>>)| {
        let guest = guest.clone();
        Trial::test(name, move || {
            guest.start_once();
            result
                .recv()
                .unwrap_or_else(|_| Err(guest.end()))
                .map_err(Failed::from)
        })
    };
    results.into_iter().map(trial).collect()
}
