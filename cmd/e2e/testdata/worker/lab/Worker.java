package lab;

import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Properties;

/**
 * Expects of an agent what a worker expects (protocol §3.6.4) and ends as one does (§3.6.5): it empties the error file,
 * looks at everything, and writes what it misses into the error file. What it saw goes to jvm.seen in its directory.
 */
public final class Worker {
    private Worker() {
    }

    public static void main(String[] arguments) throws IOException, InterruptedException {
        if (arguments.length != 1) {
            System.exit(1);
        }
        String job;
        try {
            job = new String(Base64.getDecoder().decode(arguments[0]), StandardCharsets.UTF_8);
        } catch (IllegalArgumentException e) {
            System.exit(1);
            return;
        }
        String error = System.getProperty("devops.agent.error.file");
        if (error == null) {
            System.exit(255);
        }
        Path errorFile = Path.of(error);
        String before = Files.readString(errorFile);
        Files.writeString(errorFile, "");

        List<String> missing = new ArrayList<>();
        if (before.isEmpty()) {
            missing.add("the error file was empty at the start");
        }
        if (!job.startsWith("{") || !job.contains("\"buildId\":\"" + System.getenv("BUILD_ID") + "\"")) {
            missing.add("the job is " + job);
        }
        if (!"AGENT".equals(System.getProperty("build.type"))) {
            missing.add("build.type is " + System.getProperty("build.type"));
        }
        String prefix = System.getProperty("AGENT_LOG_PREFIX");
        if (prefix == null || !prefix.startsWith(System.getenv("BUILD_ID") + "_")) {
            missing.add("AGENT_LOG_PREFIX is " + prefix);
        }
        Properties identity = new Properties();
        try (InputStream in = Files.newInputStream(Path.of(".agent.properties"))) {
            identity.load(in);
        }
        for (String key : List.of("devops.project.id", "devops.agent.id", "devops.agent.secret.key", "landun.gateway")) {
            if (identity.getProperty(key, "").isBlank()) {
                missing.add(".agent.properties has no " + key);
            }
        }
        Path scratch = Path.of(System.getProperty("java.io.tmpdir"));
        if (Files.isDirectory(scratch)) {
            Files.delete(Files.createTempFile("lab", null));
        } else {
            missing.add("java.io.tmpdir is no directory: " + scratch);
        }
        Files.createDirectories(Path.of("workspace", "jvm"));
        for (String property : List.of("devops.slave.agent.start.file", "devops.slave.agent.prepare.start.file")) {
            String file = System.getProperty(property);
            if (file == null || !Files.deleteIfExists(Path.of(file))) {
                missing.add(property + " is " + file);
            }
        }
        long heap = Runtime.getRuntime().maxMemory() >> 20;
        if (heap < 1500) {
            missing.add("the heap has " + heap + " MiB");
        }
        Files.writeString(Path.of("jvm.seen"), System.getProperty("java.version") + "\n" + job + "\n");
        if (job.contains("\"workspace\":\"fail\"")) {
            missing.add("the job asked for it");
        }
        Files.writeString(errorFile, String.join("; ", missing));
        System.exit(missing.isEmpty() ? 0 : 255);
    }
}
