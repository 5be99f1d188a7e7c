"""What antre promises and schemathesis cannot read in the contract. Loaded by schemathesis.toml."""

import unicodedata

import schemathesis

# What a lane may say to a valid order.
REFUSED = {
    "insufficient_stock",
    "sale_paused",
    "sale_not_open",
    "sale_closed",
    "limit_per_order",
    "limit_per_buyer",
    "buyer_required",
}


@schemathesis.check
def only_stock_refuses_a_valid_order(ctx, response, case):
    """400 means two things to an order: it is malformed, or stock or terms of sale refuse it."""
    valid = case.meta is not None and case.meta.generation.mode.is_positive
    if valid and case.operation.label == "POST /api/orders" and response.status_code == 400:
        reason = response.json()["data"]["reason"]
        # A schema cannot say "either product_id and total, or lines, each of another product".
        shape = {"product_id", "total", "lines"} & set(case.body)
        is_clear = shape == {"product_id", "total"} or (shape == {"lines"} and reason != "duplicate_product")
        assert reason in REFUSED or not is_clear, f"a valid order was refused as {reason}"


@schemathesis.check
def only_a_contradiction_refuses_valid_terms(ctx, response, case):
    """400 means two things to terms: they are malformed, or the sale would close before it opens, or a time is out of range."""
    valid = case.meta is not None and case.meta.generation.mode.is_positive
    if valid and case.operation.label == "PUT /api/products/{productId}/terms" and response.status_code == 400:
        data = response.json()["data"]
        assert data["reason"] == "invalid_terms", f"valid terms were refused as {data['reason']}"
        assert data["field"] in ("opens_at", "closes_at"), f"valid terms were refused for {data['field']}"


@schemathesis.check
def only_an_unseen_name_is_refused(ctx, response, case):
    """400 means two things to a product: it is malformed, or nothing of its name is visible."""
    valid = case.meta is not None and case.meta.generation.mode.is_positive
    if valid and case.operation.label == "POST /api/products" and response.status_code == 400:
        reason = response.json()["data"]["reason"]
        assert reason == "invalid_name", f"a valid product was refused as {reason}"
        name = case.body["name"]
        seen = [char for char in name if char.isascii() and unicodedata.category(char)[0] in "LNPS"]
        assert not seen, f"a name with {seen} was refused"
