"""A bundle to a FHIR server.

Source: HL7 FHIR R4, http.html#transaction and operationoutcome.html.
"""

import json

from worker.deliveries import Outcome, judge, unanswered
from worker.errors import BadRequest
from worker.outbound import Call, Outbound, Reply, Resolve, Stop, call

POST_S = 60.0
MEDIA_TYPE = "application/fhir+json"
AT_THE_ROOT = ("transaction", "batch")


def post_bundle(
    outbound: Outbound,
    url: str,
    bundle: bytes,
    token: str | None = None,
    limit_s: float = POST_S,
    resolve: Resolve | None = None,
    stop: Stop | None = None,
) -> Outcome:
    """Send a bundle once.

    Args:
        outbound: which addresses may be called.
        url: the server's base address. Transactions and batches go there, other bundles are created at `/Bundle`.
        bundle: the JSON of a FHIR bundle.
        token: bearer token; None sends none.
        limit_s: seconds for the call.
        resolve: as in `Outbound.pin`.
        stop: as in `call`.
    """
    headers = {"Content-Type": MEDIA_TYPE, "Accept": MEDIA_TYPE, "User-Agent": "SlideReason"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    place = "" if json.loads(bundle).get("type") in AT_THE_ROOT else "/Bundle"
    try:
        target = outbound.check(url.rstrip("/") + place, "fhir_url")
        reply = call(outbound, target, Call(headers, bundle), limit_s, resolve, stop)
    except BadRequest as error:
        return Outcome("failed", error.message)
    except OSError as error:
        return unanswered(error)
    return judge(reply, issues_of(reply))


def issues_of(reply: Reply) -> str:
    """The errors of an OperationOutcome in words; empty where the answer is none."""
    try:
        answer = json.loads(reply.body)
        if answer.get("resourceType") != "OperationOutcome":
            return ""
        issues = [issue for issue in answer.get("issue", []) if issue.get("severity") in ("fatal", "error")]
        words = [issue.get("diagnostics") or issue.get("details", {}).get("text") or issue["code"] for issue in issues]
        return "; ".join(str(word) for word in words)
    except (ValueError, AttributeError, KeyError, TypeError):
        return ""
