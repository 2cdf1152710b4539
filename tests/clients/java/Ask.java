// One request with Java's own client and no option of it: java Ask.java URL STREAM. Prints the answer as it comes.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

class Ask {
    public static void main(String[] args) throws Exception {
        String body = "{\"model\":\"mock\",\"stream\":" + args[1]
            + ",\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]}";
        HttpRequest request = HttpRequest.newBuilder(URI.create(args[0]))
            .header("content-type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
        var answer = HttpClient.newHttpClient().send(request, BodyHandlers.ofLines());
        answer.body().forEach(System.out::println);
        System.exit(answer.statusCode() == 200 ? 0 : 1);
    }
}
