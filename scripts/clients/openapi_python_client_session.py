"""A whole session through the client that openapi-python-client generates from the contract: every kind of answer that a
shop meets.

    python openapi_python_client_session.py URL STUCK_URL PRODUCT

STUCK_URL is an antre whose database is locked, PRODUCT a product that it has.
"""

import sys
import time
import uuid

from antre_httpx import Client
from antre_httpx.api.contract import get_contract
from antre_httpx.api.health import get_live, get_ready
from antre_httpx.api.orders import cancel_order, get_order, list_orders, pay_order, place_order
from antre_httpx.api.products import create_product, get_product, list_products, set_stock
from antre_httpx.models import Error, InventoryRequest, OrderRequest, PaymentRequest, ProductRequest
from antre_httpx.types import UNSET


def success(answer, status):
    """The parsed body of a call that must succeed with this status."""
    assert answer.status_code == status and not isinstance(answer.parsed, Error), answer
    return answer.parsed


def failure(answer, status, reason):
    """What went wrong with a call that must fail with this status and reason."""
    assert isinstance(answer.parsed, Error), answer
    assert (answer.status_code, answer.parsed.data.reason) == (status, reason), answer
    return answer.parsed.data


class Shop:
    """The calls of one server."""

    def __init__(self, url):
        self.client = Client(base_url=url, timeout=30, httpx_args={"trust_env": False})

    def call(self, endpoint, *path, **more):
        return endpoint.sync_detailed(*path, client=self.client, **more)

    def create(self, name):
        return self.call(create_product, body=ProductRequest(name=name))

    def stock(self, product, stock):
        return self.call(set_stock, product, body=InventoryRequest(stock=stock))

    def order(self, product, total, **headers):
        return self.call(place_order, body=OrderRequest(product_id=product, total=total), **headers)

    def decided(self, order):
        """A pending order once it is decided."""
        while (found := success(self.call(get_order, order), 200).data).status == "pending":
            time.sleep(0.005)
        return found

    def all_of(self, endpoint, **filters):
        """All rows of a list, two at a time."""
        rows, after = [], UNSET
        while True:
            page = success(self.call(endpoint, limit=2, after=after, **filters), 200)
            rows += page.data
            after = page.next_
            if after is None:
                return rows


def main(url, stuck_url, stuck_product):
    shop = Shop(url)

    # A product with five pieces.
    product = success(shop.create("Kaos Polos"), 201).data.id
    inventory = success(shop.stock(product, 5), 200).data
    assert (inventory.stored_stock, inventory.available_stock, inventory.reserved_stock) == (5, 5, 0)
    assert success(shop.call(get_product, product), 200).data.name == "Kaos Polos"

    # 201, and the order has all that is known of it.
    first = success(shop.order(product, 2), 201).data
    assert (first.status, first.total) == ("reserved", 2), first
    assert first.expires_at > first.created_at, first

    # 202, then the same key again, with the same order and with another one.
    headers = {"idempotency_key": str(uuid.uuid4()), "prefer": "respond-async"}
    second = success(shop.order(product, 1, **headers), 202).data
    assert (second.status, second.total) == ("pending", UNSET), second
    assert shop.decided(second.id).status == "reserved"
    again = success(shop.order(product, 1, **headers), 201).data
    assert (again.id, again.status) == (second.id, "reserved"), again
    failure(shop.order(product, 2, **headers), 422, "idempotency_key_reused")

    # 400, 404.
    assert failure(shop.order(product, 3), 400, "insufficient_stock").available_stock == 2
    failure(shop.order(4711, 1), 404, "product_not_found")
    failure(shop.call(get_order, uuid.UUID(int=0)), 404, "order_not_found")

    # Payment, cancellation, and what is not possible after them: 409.
    payment = PaymentRequest(reference="tx-1")
    assert success(shop.call(pay_order, first.id, body=payment), 200).data.payment_reference == "tx-1"
    assert failure(shop.call(cancel_order, first.id), 409, "order_already_paid").order_status == "paid"
    assert failure(shop.stock(product, 0), 409, "stock_below_reserved").reserved_stock == 1
    assert success(shop.call(cancel_order, second.id), 200).data.status == "cancelled"
    over = failure(shop.order(product, 1, **headers), 409, "order_not_reserved")
    assert over.order_status == "cancelled", over

    # Lists to their end.
    for _ in range(3):
        success(shop.order(product, 1), 201)
        success(shop.create("Kaos Garis"), 201)
    orders = shop.all_of(list_orders, product_id=product)
    assert [order.id for order in orders[:2]] == [first.id, second.id] and len(orders) == 5, orders
    assert len(shop.all_of(list_products)) >= 4

    # Health, and the contract itself.
    assert success(shop.call(get_live), 200).data.live
    assert success(shop.call(get_ready), 200).data.database == "ok"
    assert success(shop.call(get_contract), 200)["openapi"] == "3.0.3"

    # 202 at the deadline and 503 where the database cannot be written.
    stuck = Shop(stuck_url)
    assert success(stuck.order(stuck_product, 1), 202).data.status == "pending"
    failure(stuck.create("Kaos Polos"), 503, "database_unavailable")


main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
