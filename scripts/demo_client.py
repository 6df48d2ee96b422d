"""A gateway of the demo: many calls through the bridge at once, and the knobs of the reference services.

demo_client.py URL calls EXTENSION NUMBER [TENANT]     prints how many calls came to which end, one line each
demo_client.py URL control TARGET MODE [MS]            tells a reference service how to behave
"""

import asyncio
import collections
import json
import sys

import nats

AT_ONCE = 8


async def calls(client, extension, number, tenant="demo"):
    request = {"tenant_id": tenant, "payload": {"text": "  Hello   Demo "}}
    if extension == "test_provider":
        request = {"tenant_id": tenant, "payload": {"payload": "hello demo"}}
    body = json.dumps(request).encode()
    slots = asyncio.Semaphore(AT_ONCE)

    async def call():
        async with slots:
            reply = await client.request(f"beamline.bridge.v1.invoke.{extension}", body, timeout=30)
        answer = json.loads(reply.data)
        return answer["error"]["code"] if answer.get("ok") is False else "answered"

    ends = collections.Counter(await asyncio.gather(*(call() for _ in range(int(number)))))
    for end, count in sorted(ends.items()):
        print(end, count)


async def control(client, target, mode, ms="0"):
    body = json.dumps({"mode": mode, "ms": int(ms)}).encode()
    reply = json.loads((await client.request(f"demo.control.{target}", body, timeout=5)).data)
    if not reply["ok"]:
        sys.exit(reply["error"])


async def main(url, command, *arguments):
    client = await nats.connect(url)
    try:
        await {"calls": calls, "control": control}[command](client, *arguments)
    finally:
        await client.close()


asyncio.run(main(*sys.argv[1:]))
