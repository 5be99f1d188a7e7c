import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.UUID;

import com.fasterxml.jackson.databind.ObjectMapper;

import org.openapitools.client.ApiClient;
import org.openapitools.client.ApiException;
import org.openapitools.client.ApiResponse;
import org.openapitools.client.api.ContractApi;
import org.openapitools.client.api.HealthApi;
import org.openapitools.client.api.OrdersApi;
import org.openapitools.client.api.ProductsApi;
import org.openapitools.client.model.ErrorDetails;
import org.openapitools.client.model.Inventory;
import org.openapitools.client.model.InventoryAnswer;
import org.openapitools.client.model.InventoryRequest;
import org.openapitools.client.model.Order;
import org.openapitools.client.model.OrderAnswer;
import org.openapitools.client.model.OrderList;
import org.openapitools.client.model.OrderRequest;
import org.openapitools.client.model.ProductAnswer;
import org.openapitools.client.model.ProductList;
import org.openapitools.client.model.ProductRequest;

/**
 * A whole session through the client that openapi-generator generates from the contract: every kind of answer that a shop
 * meets. {@code java Session URL STUCK_URL PRODUCT}, where STUCK_URL is an antre whose database is locked, and PRODUCT a
 * product that it has.
 */
public class Session {
    private final ApiClient client = new ApiClient();
    private final ProductsApi products;
    private final OrdersApi orders;
    private final HealthApi health;
    private final ContractApi contract;

    private Session(String url) {
        client.updateBaseUri(url);
        products = new ProductsApi(client);
        orders = new OrdersApi(client);
        health = new HealthApi(client);
        contract = new ContractApi(client);
    }

    private interface Call<T> {
        T send() throws ApiException;
    }

    /** The body of a call that must succeed with this status. */
    private static <T> T success(int status, ApiResponse<T> answer) {
        expect(status, answer.getStatusCode());
        return answer.getData();
    }

    /** What went wrong with a call that must fail with this status and reason. */
    private ErrorDetails failure(int status, String reason, Call<?> call) throws Exception {
        Object answer;
        try {
            answer = call.send();
        } catch (ApiException error) {
            ObjectMapper mapper = client.getObjectMapper();
            ErrorDetails details =
                mapper.readValue(error.getResponseBody(), org.openapitools.client.model.Error.class).getData();
            expect(status + " " + reason, error.getCode() + " " + details.getReason());
            return details;
        }
        throw new AssertionError(status + " " + reason + " was expected, not " + answer);
    }

    private static void expect(Object expected, Object found) {
        if (!expected.equals(found)) {
            throw new AssertionError(expected + " was expected, not " + found);
        }
    }

    private ApiResponse<ProductAnswer> create(String name) throws ApiException {
        return products.createProductWithHttpInfo(new ProductRequest().name(name));
    }

    private ApiResponse<InventoryAnswer> stock(long product, int stock) throws ApiException {
        return products.setStockWithHttpInfo(product, new InventoryRequest().stock(stock));
    }

    private ApiResponse<OrderAnswer> order(long product, int total) throws ApiException {
        return orders.placeOrderWithHttpInfo(new OrderRequest().productId(product).total(total), null, null);
    }

    private ApiResponse<OrderAnswer> keyed(long product, int total, String key) throws ApiException {
        OrderRequest request = new OrderRequest().productId(product).total(total);
        return orders.placeOrderWithHttpInfo(request, key, "respond-async");
    }

    /** A pending order once it is decided. */
    private Order decided(UUID id) throws Exception {
        while (true) {
            Order order = orders.getOrder(id, 5).getData();
            if (!order.getStatus().equals("pending")) {
                return order;
            }
            Thread.sleep(5);
        }
    }

    private void run() throws Exception {
        // A product with five pieces.
        long product = success(201, create("Kaos Polos")).getData().getId();
        Inventory inventory = success(200, stock(product, 5)).getData();
        expect(List.of(5, 5, 0),
            List.of(inventory.getStoredStock(), inventory.getAvailableStock(), inventory.getReservedStock()));
        expect("Kaos Polos", products.getProduct(product).getData().getName());

        // 201, and the order has all that is known of it.
        Order first = success(201, order(product, 2)).getData();
        expect("reserved 2", first.getStatus() + " " + first.getTotal());
        expect(true, first.getExpiresAt().isAfter(first.getCreatedAt()));

        // 202, then the same key again, with the same order and with another one.
        String key = UUID.randomUUID().toString();
        Order second = success(202, keyed(product, 1, key)).getData();
        expect("pending null", second.getStatus() + " " + second.getTotal());
        expect("reserved", decided(second.getId()).getStatus());
        Order again = success(201, keyed(product, 1, key)).getData();
        expect(second.getId() + " reserved", again.getId() + " " + again.getStatus());
        failure(422, "idempotency_key_reused", () -> keyed(product, 2, key));

        // 400, 404.
        expect(2, failure(400, "insufficient_stock", () -> order(product, 3)).getAvailableStock());
        failure(404, "product_not_found", () -> order(4711, 1));
        failure(404, "order_not_found", () -> orders.getOrder(new UUID(0, 0), null));

        // Payment, cancellation, and what is not possible after them: 409.
        expect("paid", orders.payOrder(first.getId(), null, null).getData().getStatus());
        expect("paid",
            failure(409, "order_already_paid", () -> orders.cancelOrder(first.getId(), null)).getOrderStatus());
        expect(1, failure(409, "stock_below_reserved", () -> stock(product, 0)).getReservedStock());
        expect("cancelled", orders.cancelOrder(second.getId(), null).getData().getStatus());
        expect("cancelled", failure(409, "order_not_reserved", () -> keyed(product, 1, key)).getOrderStatus());

        // Lists to their end, two at a time.
        for (int n = 0; n < 3; n++) {
            success(201, order(product, 1));
            success(201, create("Kaos Garis"));
        }
        List<UUID> ids = new ArrayList<>();
        UUID after = null;
        do {
            OrderList page = orders.listOrders(product, null, null, 2, after, "asc", null, null);
            page.getData().forEach(order -> ids.add(order.getId()));
            after = page.getNext();
        } while (after != null);
        expect(5, ids.size());
        expect(List.of(first.getId(), second.getId()), ids.subList(0, 2));
        int count = 0;
        Long behind = null;
        do {
            ProductList page = products.listProducts(2, behind, null, null);
            count += page.getData().size();
            behind = page.getNext();
        } while (behind != null);
        expect(true, count >= 4);

        // Health, and the contract itself.
        expect(true, health.getLive().getData().getLive());
        expect("ok", health.getReady().getData().getDatabase());
        expect("3.0.3", ((Map<?, ?>) contract.getContract()).get("openapi"));
    }

    /** 202 at the deadline and 503 where the database cannot be written. */
    private void runStuck(long product) throws Exception {
        expect("pending", success(202, order(product, 1)).getData().getStatus());
        failure(503, "database_unavailable", () -> create("Kaos Polos"));
    }

    public static void main(String[] arguments) throws Exception {
        new Session(arguments[0]).run();
        new Session(arguments[1]).runStuck(Long.parseLong(arguments[2]));
    }
}
