PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE agent (id TEXT PRIMARY KEY, doc TEXT NOT NULL) STRICT;
INSERT INTO agent VALUES('1c8ffd488075','{"id":"1c8ffd488075","project":"demo","secret":"27016ddf279ef7c3120eab0ea07186353cfe3e428ed7a39d122d5530f9c17cb2","os":"linux","status":"IMPORT_OK","labels":["gpu"],"created":1795441866062,"hostName":"build-01","ip":"10.0.0.1","agentVersion":"v1.0.0","enablePipeline":true}');
CREATE TABLE build (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, active INTEGER NOT NULL,
	spec TEXT NOT NULL, doc TEXT NOT NULL) STRICT;
INSERT INTO build VALUES(1,'b-cba8ca3278a414d10d3cdb45e5ae58b7',0,'{"name":"test","steps":[{"id":"step1","name":"step1","script":"echo hello"}]}','{"id":"b-cba8ca3278a414d10d3cdb45e5ae58b7","number":1,"name":"test","project":"demo","pipeline":"p-d8cda65addecf9c1327549bafbb3b593","state":"succeeded","agent":"1c8ffd488075","agentHost":"build-01","queuedAt":1795441866065,"handedAt":1795441866066,"finishedAt":1795441866070,"handOuts":1,"steps":[{"id":"step1","task":"e-4b22955d044521e544b955f3eb63bfc9","name":"step1","state":"skipped"}],"hash":"c-82be094345f1d1143eca7a7b4232d9b4"}');
INSERT INTO build VALUES(2,'b-8a84b171862db1079e8c86c6d79b9889',1,'{"name":"test","steps":[{"id":"step1","name":"step1","script":"echo later"}]}','{"id":"b-8a84b171862db1079e8c86c6d79b9889","number":2,"name":"test","project":"demo","pipeline":"p-d8cda65addecf9c1327549bafbb3b593","state":"queued","queuedAt":1795441866071,"steps":[{"id":"step1","task":"e-46acc14f2f35e702860259d84c88cebe","name":"step1","state":"pending"}],"hash":"c-b0c9a96a76fbce8644b16244e10db612"}');
CREATE TABLE log (build INTEGER NOT NULL, last INTEGER NOT NULL, lines TEXT NOT NULL,
	PRIMARY KEY (build, last)) STRICT;
INSERT INTO log VALUES(1,2,'[{"seq":1,"at":1700000000000,"type":"LOG","message":"a"},{"seq":2,"at":1700000000001,"type":"LOG","message":"b"}]');
INSERT INTO log VALUES(1,4,'[{"seq":3,"at":1700000000000,"type":"LOG","message":"a"},{"seq":4,"at":1700000000001,"type":"LOG","message":"b"}]');
INSERT INTO log VALUES(1,6,'[{"seq":5,"at":1700000000000,"type":"LOG","message":"a"},{"seq":6,"at":1700000000001,"type":"LOG","message":"b"}]');
CREATE TABLE log_batch (build INTEGER PRIMARY KEY, last INTEGER NOT NULL) STRICT;
CREATE TABLE token (hash TEXT PRIMARY KEY, doc TEXT NOT NULL) STRICT;
INSERT INTO token VALUES('d864e819824019a52c230cfcc4b9924230ae1ff14e59e2b25edfc826413df945','{"project":"demo","labels":["x"],"expires":1795701066073}');
CREATE TABLE script (id INTEGER PRIMARY KEY, agent TEXT NOT NULL, doc TEXT NOT NULL) STRICT;
INSERT INTO script VALUES(1,'1c8ffd488075','{"id":1,"agent":"1c8ffd488075","command":"uname -a","status":"PENDING","createdAt":1795441866077}');
CREATE TABLE release (version TEXT PRIMARY KEY, doc TEXT NOT NULL) STRICT;
CREATE TABLE rollout (id INTEGER PRIMARY KEY, doc TEXT NOT NULL) STRICT;
CREATE TABLE rollout_agent (rollout INTEGER NOT NULL, agent TEXT NOT NULL, doc TEXT NOT NULL,
	PRIMARY KEY (rollout, agent)) STRICT;
CREATE INDEX build_active ON build (number) WHERE active = 1;
CREATE INDEX script_agent ON script (agent);
PRAGMA user_version = 1;
COMMIT;
