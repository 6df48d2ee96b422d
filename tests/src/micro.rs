//! A NATS micro service that shares no code with ours: nats-py's, with endpoints that tell which service answered.

use crate::python::Program;
use crate::{Nats, python};

const TEXT: &str = r#"
import asyncio, json, sys
import nats, nats.micro

async def main():
    url, name, subjects = sys.argv[1], sys.argv[2], sys.argv[3:]
    client = await nats.connect(url, reconnect_time_wait=0.1, max_reconnect_attempts=-1)
    service = await nats.micro.add_service(client, name=name, version="1.2.3")
    async def answer(request):
        await request.respond(json.dumps({"payload": {"by": name}}).encode())
    for n, subject in enumerate(subjects):
        await service.add_endpoint(name=f"e{n}", subject=subject, queue_group="q", handler=answer)
    await client.flush()
    print("ready")
    await asyncio.Event().wait()

asyncio.run(main())
"#;

/// Starts a service of that name that listens on `subjects`. A pre-processor: the reply's payload is `{"by": <name>}`.
pub fn service(nats: &Nats, name: &str, subjects: &[&str]) -> Program {
    service_at(&nats.url(), name, subjects)
}

/// The same with an address of its own, which may hold a login.
pub fn service_at(url: &str, name: &str, subjects: &[&str]) -> Program {
    let mut arguments = vec![url, name];
    arguments.extend(subjects);
    python::Program::start(TEXT, &arguments)
}
