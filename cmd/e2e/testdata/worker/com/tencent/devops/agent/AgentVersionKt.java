package com.tencent.devops.agent;

/** Answers the version probe (protocol §3.3). */
public final class AgentVersionKt {
    private AgentVersionKt() {
    }

    public static void main(String[] arguments) {
        System.out.println("v9.8.7");
    }
}
