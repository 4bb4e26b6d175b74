# The service in a container: its data in the volume /var/lib/persistd, its log on standard error.
#   docker build -t tornado-persist .
#   docker run -p 127.0.0.1:8001:8001 -v persistd:/var/lib/persistd tornado-persist

FROM python:3.14-slim AS build
WORKDIR /src
COPY setup.py pyproject.toml README.rst LICENSE requirements.lock ./
COPY tornado_persist tornado_persist
COPY conf conf
RUN python -m venv /opt/persistd \
    && /opt/persistd/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.lock \
    && /opt/persistd/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps .

FROM python:3.14-slim
# The same numbers everywhere, for volumes that outlive an image.
RUN groupadd --system --gid 10001 persistd \
    && useradd --system --uid 10001 --gid persistd --home-dir /var/lib/persistd --no-create-home \
        --shell /usr/sbin/nologin persistd \
    && install -d -o persistd -g persistd -m 0750 /var/lib/persistd
COPY --from=build /opt/persistd /opt/persistd
COPY conf/persistd.toml /etc/persistd/persistd.toml
ENV PATH=/opt/persistd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PERSISTD_CONFIG=/etc/persistd/persistd.toml \
    PERSISTD_DATA_DIR=/var/lib/persistd \
    PERSISTD_SERVER__HOST=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/persistd
VOLUME /var/lib/persistd
EXPOSE 8001
# SIGTERM drains: it needs server.shutdown_timeout, so give docker stop more than its 10 seconds (-t 20).
STOPSIGNAL SIGTERM
# Alive, not healthy: a database that is down is no reason to restart what keeps the rows meanwhile.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; port = os.environ.get('PERSISTD_SERVER__PORT', '8001'); r.urlopen(f'http://127.0.0.1:{port}/health/live', timeout=2)"]
ENTRYPOINT ["persistd"]
CMD ["run"]
