//! The work of a simulated day: templates, jobs, and nonces. It is the same in every schedule, and so is mined once.

use std::collections::HashMap;

use sluice_mining::PreparedJob;
use sluice_mining::template::Template;
use sluice_proto::v1::{Job, Submission, TemplateChunk};

use crate::records::{self, Hash, at, chunks, job_of, mined, prepared, template, transaction};

/// Tips there are; each has an empty job and a full one.
pub const TIPS: u64 = 40;

/// Jobs and nonces. One for each thread that simulates.
pub struct Work {
    templates: Vec<Template>,
    jobs: Vec<PreparedJob>,
    nonces: HashMap<(u64, u32, u64, u8), u32>,
}

impl Default for Work {
    fn default() -> Self {
        Self::new()
    }
}

impl Work {
    /// The day's jobs.
    pub fn new() -> Self {
        let templates: Vec<Template> = (1..=2 * TIPS).map(template_of).collect();
        let jobs = (1..).zip(&templates).map(|(id, template)| prepared(&job_of(template, id, 0, true), 1, at(0)));
        Self { jobs: jobs.collect(), templates, nonces: HashMap::new() }
    }

    /// The tip that the job `id` is on.
    pub fn tip_of(id: u64) -> u64 {
        id.div_ceil(2)
    }

    /// Height of the block that the job `id` is for.
    pub fn height(&self, id: u64) -> u32 {
        self.templates[Self::place(id)].height
    }

    /// The chunks of the template of the job `id`; none where it has no transactions.
    pub fn chunks(&self, id: u64) -> Vec<TemplateChunk> {
        let template = &self.templates[Self::place(id)];
        if template.transactions.is_empty() { Vec::new() } else { chunks(template, id, true, 250, |_| false) }
    }

    /// The job `id`, whose template is known at `template_clock`; `clean` where its tip is new.
    pub fn job(&self, id: u64, template_clock: u64, clean: bool) -> Job {
        job_of(&self.templates[Self::place(id)], id, template_clock, clean)
    }

    /// A share on the job `id` whose hash is what is `wanted`.
    pub fn share(&mut self, id: u64, extranonce1: u32, extranonce2: u64, wanted: Hash) -> Submission {
        let job = &self.jobs[Self::place(id)];
        let template = &self.templates[Self::place(id)];
        let share = Submission {
            job_id: id,
            extranonce1,
            extranonce2,
            ntime: template.cur_time,
            version_mask: 0,
            difficulty: sluice_mining::Difficulty::MIN.units(),
            ..Submission::default()
        };
        let nonce = self
            .nonces
            .entry((id, extranonce1, extranonce2, wanted as u8))
            .or_insert_with(|| mined(job, &share, wanted).nonce);
        Submission { nonce: *nonce, ..share }
    }

    fn place(id: u64) -> usize {
        (id.clamp(1, 2 * TIPS) - 1) as usize
    }
}

/// The first template of a tip is empty, the second is not.
fn template_of(id: u64) -> Template {
    let transactions = if id.is_multiple_of(2) { 3 } else { 0 };
    let transactions = (0..transactions).map(|number| transaction(id * 100 + number, number % 2 == 0));
    Template { nbits: records::NBITS, ..template(Work::tip_of(id) as u8, transactions.collect(), true) }
}
