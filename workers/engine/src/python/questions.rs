//! Python's half of `asks`: what the engine wants to know of the application.

use std::os::fd::RawFd;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::asks::{self, AskKind, Fallback, Question, verdict};

#[pyclass(frozen, module = "workers._engine")]
pub(super) struct Questions(pub(super) asks::Questions);

#[pymethods]
impl Questions {
    fn fileno(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn take<'py>(
        &self,
        py: Python<'py>,
        count_max: usize,
    ) -> Vec<(u64, &'static str, Bound<'py, PyBytes>)> {
        let taken = self.0.take(count_max).into_iter();
        let told = taken.map(|question| match question {
            Question::Ask { id, kind, body } => (id, kind.name(), PyBytes::new(py, &body)),
            Question::Breaker { kind, open } => {
                let what = if open { "opened" } else { "closed" };
                (0, what, PyBytes::new(py, kind.name().as_bytes()))
            }
            Question::Log(line) => (0, "log", PyBytes::new(py, line.as_bytes())),
        });
        told.collect()
    }

    fn answer(&self, id: u64, kind: &str, body: &[u8]) -> PyResult<()> {
        let kind = self::kind(kind)?;
        verdict::check(kind, body).map_err(PyValueError::new_err)?;
        self.0.answer(id, kind, Ok(body.to_vec()));
        Ok(())
    }

    fn fail(&self, id: u64, kind: &str, why: &str) -> PyResult<()> {
        let why = match why {
            "timeout" => Fallback::Timeout,
            "failed" => Fallback::Failed,
            _ => return Err(PyValueError::new_err(format!("{why:?} is no reason"))),
        };
        self.0.answer(id, self::kind(kind)?, Err(why));
        Ok(())
    }
}

pub(super) fn kind(name: &str) -> PyResult<AskKind> {
    AskKind::named(name)
        .ok_or_else(|| PyValueError::new_err(format!("{name:?} is no kind of question")))
}
