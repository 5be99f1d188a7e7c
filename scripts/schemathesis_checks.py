"""What antre promises and schemathesis cannot read in the contract. Loaded by schemathesis.toml."""

import schemathesis


@schemathesis.check
def only_stock_refuses_a_valid_order(ctx, response, case):
    """400 means two things to an order: it is malformed, or there are not enough pieces for it."""
    valid = case.meta is not None and case.meta.generation.mode.is_positive
    if valid and case.operation.label == "POST /api/orders" and response.status_code == 400:
        reason = response.json()["data"]["reason"]
        assert reason == "insufficient_stock", f"a valid order was refused as {reason}"
