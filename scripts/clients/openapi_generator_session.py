"""A whole session through the client that openapi-generator generates from the contract: every kind of answer that a shop
meets.

    python openapi_generator_session.py URL STUCK_URL PRODUCT

STUCK_URL is an antre whose database is locked, PRODUCT a product that it has.
"""

import sys
import time
import uuid

import antre_client
from antre_client import ApiException, InventoryRequest, OrderRequest, PaymentRequest, ProductRequest


def success(answer, status):
    """The data of a call that must succeed with this status."""
    assert answer.status_code == status, answer
    return answer.data


def failure(status, reason, call, *arguments, **more):
    """What went wrong with a call that must fail with this status and reason."""
    try:
        answer = call(*arguments, **more)
    except ApiException as error:
        # The generated exception carries the error in the contract's type.
        assert isinstance(error.data, antre_client.Error), error
        assert (error.status, error.data.data.reason) == (status, reason), error
        return error.data.data
    raise AssertionError(f"{status} {reason} was expected, not {answer}")


def all_of(page, **filters):
    """All rows of a list, two at a time."""
    rows, after = [], None
    while True:
        answer = page(limit=2, after=after, **filters)
        rows += answer.data
        after = answer.next
        if after is None:
            return rows


class Shop:
    """The calls of one server."""

    def __init__(self, url):
        client = antre_client.ApiClient(antre_client.Configuration(host=url))
        self.products = antre_client.ProductsApi(client)
        self.orders = antre_client.OrdersApi(client)
        self.health = antre_client.HealthApi(client)
        self.contract = antre_client.ContractApi(client)

    def create(self, name):
        return self.products.create_product_with_http_info(ProductRequest(name=name))

    def stock(self, product, stock):
        return self.products.set_stock_with_http_info(product, InventoryRequest(stock=stock))

    def order(self, product, total, **headers):
        request = OrderRequest(product_id=product, total=total)
        return self.orders.place_order_with_http_info(request, **headers)

    def decided(self, order):
        """A pending order once it is decided."""
        while (found := self.orders.get_order(order).data).status == "pending":
            time.sleep(0.005)
        return found


def main(url, stuck_url, stuck_product):
    shop = Shop(url)

    # A product with five pieces.
    product = success(shop.create("Kaos Polos"), 201).data.id
    inventory = success(shop.stock(product, 5), 200).data
    assert (inventory.stored_stock, inventory.available_stock, inventory.reserved_stock) == (5, 5, 0)
    assert shop.products.get_product(product).data.name == "Kaos Polos"

    # 201, and the order has all that is known of it.
    first = success(shop.order(product, 2), 201).data
    assert (first.status, first.total) == ("reserved", 2), first
    assert first.expires_at > first.created_at, first

    # 202, then the same key again, with the same order and with another one.
    headers = {"idempotency_key": str(uuid.uuid4()), "prefer": "respond-async"}
    second = success(shop.order(product, 1, **headers), 202).data
    assert (second.status, second.total) == ("pending", None), second
    assert shop.decided(second.id).status == "reserved"
    again = success(shop.order(product, 1, **headers), 201).data
    assert (again.id, again.status) == (second.id, "reserved"), again
    failure(422, "idempotency_key_reused", shop.order, product, 2, **headers)

    # 400, 404.
    assert failure(400, "insufficient_stock", shop.order, product, 3).available_stock == 2
    failure(404, "product_not_found", shop.order, 4711, 1)
    failure(404, "order_not_found", shop.orders.get_order, uuid.UUID(int=0))

    # Payment, cancellation, and what is not possible after them: 409.
    payment = PaymentRequest(reference="tx-1")
    assert shop.orders.pay_order(first.id, payment_request=payment).data.payment_reference == "tx-1"
    assert failure(409, "order_already_paid", shop.orders.cancel_order, first.id).order_status == "paid"
    assert failure(409, "stock_below_reserved", shop.stock, product, 0).reserved_stock == 1
    assert shop.orders.cancel_order(second.id).data.status == "cancelled"
    assert failure(409, "order_not_reserved", shop.order, product, 1, **headers).order_status == "cancelled"

    # Lists to their end.
    for _ in range(3):
        success(shop.order(product, 1), 201)
        success(shop.create("Kaos Garis"), 201)
    orders = all_of(shop.orders.list_orders, product_id=product)
    assert [order.id for order in orders[:2]] == [first.id, second.id] and len(orders) == 5, orders
    assert len(all_of(shop.products.list_products)) >= 4

    # Health, and the contract itself.
    assert shop.health.get_live().data.live
    assert shop.health.get_ready().data.database == "ok"
    assert shop.contract.get_contract()["openapi"] == "3.0.3"

    # 202 at the deadline and 503 where the database cannot be written.
    stuck = Shop(stuck_url)
    assert success(stuck.order(stuck_product, 1), 202).data.status == "pending"
    failure(503, "database_unavailable", stuck.create, "Kaos Polos")


main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
