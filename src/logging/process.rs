//! What every line of this process is about. The process of a guest has one guest, and at most
//! one move at a time: each of its lines names them, wherever it is written.

use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use super::fields::Fields;

static ABOUT: Mutex<About> = Mutex::new(About { guest: None, moving: None });

struct About {
    guest: Option<String>,
    moving: Option<Uuid>,
}

fn about() -> std::sync::MutexGuard<'static, About> {
    ABOUT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The process is that of this guest.
pub fn is_of(guest: &str) {
    about().guest = Some(guest.to_owned());
}

/// The guest's move, for as long as this lives.
#[derive(Debug)]
#[must_use = "lines name the move for as long as this lives"]
pub struct Moving(Uuid);

/// A move of the guest is under way.
pub fn moving(id: Uuid) -> Moving {
    about().moving = Some(id);
    Moving(id)
}

impl Drop for Moving {
    fn drop(&mut self) {
        let mut about = about();
        // The next one may have begun while this one was cleared away.
        if about.moving == Some(self.0) {
            about.moving = None;
        }
    }
}

/// The fields of every line.
pub(super) fn fields() -> Fields {
    let about = about();
    let mut fields = Fields::default();
    if let Some(id) = about.moving {
        fields.add("MOVE", id.to_string().into());
    }
    if let Some(guest) = &about.guest {
        fields.add("GUEST", guest.clone().into());
    }
    fields
}
