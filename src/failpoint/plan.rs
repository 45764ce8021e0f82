//! What is to happen at which place, as a test writes it: a file of a generation and a rule a
//! line. The places passed are counted anew in each generation.
//!
//! ```text
//! 7
//! source.send.LastPiece 1 hold
//! target.send.Prepared * drop
//! ```

use std::time::Duration;

use migrate_engine::failpoint::Fate;

/// Longest plan, in bytes.
pub const MAX: usize = 4096;

/// What happens at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The thread waits there until the plan says so no more.
    Hold,
    /// Whatever is there has this fate.
    Fate(Fate),
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Name of the place.
    pub place: String,
    /// Which time; `None`: each.
    pub nth: Option<u32>,
    /// What happens.
    pub action: Action,
}

/// A plan. Generation 0 is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Its generation.
    pub generation: u64,
    /// Its rules; the first that fits holds.
    pub rules: Vec<Rule>,
}

impl Plan {
    /// The plan of a text. What cannot be read is no rule.
    pub fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        let generation = lines.next().and_then(|l| l.trim().parse().ok()).unwrap_or(0);
        Self { generation, rules: lines.filter_map(rule).collect() }
    }

    /// The text of a plan.
    pub fn text(&self) -> String {
        let lines = self.rules.iter().map(|Rule { place, nth, action }| {
            let nth = nth.map_or("*".to_owned(), |n| n.to_string());
            let action = match action {
                Action::Hold => "hold".to_owned(),
                Action::Fate(Fate::Pass) => "pass".to_owned(),
                Action::Fate(Fate::Drop) => "drop".to_owned(),
                Action::Fate(Fate::Twice) => "twice".to_owned(),
                Action::Fate(Fate::Later(time)) => format!("later {}", time.as_millis()),
                Action::Fate(Fate::Fail(number)) => format!("fail {number}"),
            };
            format!("{place} {nth} {action}\n")
        });
        format!("{}\n{}", self.generation, lines.collect::<String>())
    }

    /// What happens when this place is passed for this time.
    pub fn action(&self, place: &str, time: u32) -> Action {
        let fits = |r: &&Rule| r.place == place && r.nth.is_none_or(|n| n == time);
        self.rules.iter().find(fits).map_or(Action::Fate(Fate::Pass), |r| r.action)
    }
}

fn rule(line: &str) -> Option<Rule> {
    let mut words = line.split_ascii_whitespace();
    let place = words.next()?.to_owned();
    let nth = match words.next()? {
        "*" => None,
        n => Some(n.parse().ok()?),
    };
    let action = match (words.next()?, words.next()) {
        ("hold", None) => Action::Hold,
        ("pass", None) => Action::Fate(Fate::Pass),
        ("drop", None) => Action::Fate(Fate::Drop),
        ("twice", None) => Action::Fate(Fate::Twice),
        ("later", Some(ms)) => Action::Fate(Fate::Later(Duration::from_millis(ms.parse().ok()?))),
        ("fail", Some(number)) => Action::Fate(Fate::Fail(number.parse().ok()?)),
        _ => return None,
    };
    Some(Rule { place, nth, action })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_come_back_and_the_first_rule_that_fits_holds() {
        let rule = |place: &str, nth, action| Rule { place: place.into(), nth, action };
        let later = Fate::Later(Duration::from_millis(30));
        let plan = Plan {
            generation: 7,
            rules: vec![
                rule("a.b", Some(2), Action::Hold),
                rule("a.b", None, Action::Fate(Fate::Drop)),
                rule("c", Some(1), Action::Fate(later)),
                rule("d", None, Action::Fate(Fate::Fail(28))),
                rule("e", None, Action::Fate(Fate::Twice)),
            ],
        };
        assert_eq!(Plan::parse(&plan.text()), plan);
        assert_eq!(plan.action("a.b", 1), Action::Fate(Fate::Drop));
        assert_eq!(plan.action("a.b", 2), Action::Hold);
        assert_eq!(plan.action("c", 2), Action::Fate(Fate::Pass));
        assert_eq!(Plan::parse("\nx\ny 1\nz 1 hold now\n"), Plan::default());
    }
}
