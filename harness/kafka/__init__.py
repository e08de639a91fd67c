"""A real Kafka on this host: jars by Maven, KRaft brokers on loopback, Kafka's own tools."""
