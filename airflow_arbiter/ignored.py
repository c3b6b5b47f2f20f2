"""
The settings of gunicorn that have no effect here, and why.

Known so that an operator who sets one is told. gunicorn's own documentation has them as options of gunicorn,
while most belong to its own workers, which read requests themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

_BY_UVICORN = "uvicorn reads requests, and has no such option"
_NO_ACCESS_LOG = "gunicorn's access log is not used; ours has its own form"
_NO_HOOK = "a uvicorn worker never calls it"
_NO_TLS_OPTION = "uvicorn makes the TLS context, and has no such option"
_NO_DIRTY_WORKERS = "gunicorn's dirty workers are not supported"
_NO_CONTROL = "the control socket is for its user and root alone"
_NO_PASTE = "apps are not loaded by Paste"

IGNORED: Mapping[str, str] = {
    "threads": "a worker has one event loop; its threads are the app's affair",
    "worker_connections": "a worker takes as many connections as it has file descriptors",
    **dict.fromkeys(
        (
            "limit_request_line",
            "limit_request_fields",
            "limit_request_field_size",
            "sendfile",
            "tmp_upload_dir",
            "secure_scheme_headers",
            "proxy_protocol",
            "proxy_allow_ips",
            "protocol",
            "uwsgi_allow_ips",
            "http_protocols",
            "http2_cleartext",
            "http2_max_concurrent_streams",
            "http2_initial_window_size",
            "http2_max_frame_size",
            "http2_max_header_list_size",
            "permit_obsolete_folding",
            "strip_header_spaces",
            "permit_unconventional_http_method",
            "permit_unconventional_http_version",
            "casefold_http_method",
            "forwarder_headers",
            "header_map",
            "http_parser",
            "websocket_max_message_size",
            "asgi_loop",
            "asgi_lifespan",
            "asgi_disconnect_grace_period",
            "root_path",
        ),
        _BY_UVICORN,
    ),
    **dict.fromkeys(("access_log_format", "disable_redirect_access_to_syslog"), _NO_ACCESS_LOG),
    **dict.fromkeys(("pre_request", "post_request", "worker_int", "worker_abort"), _NO_HOOK),
    **dict.fromkeys(
        ("ssl_context", "ssl_version", "suppress_ragged_eofs", "do_handshake_on_connect"), _NO_TLS_OPTION
    ),
    "enable_backlog_metric": "gunicorn's gauge of its queue is not made",
    **dict.fromkeys(
        (
            "dirty_apps",
            "dirty_workers",
            "dirty_timeout",
            "dirty_threads",
            "dirty_graceful_timeout",
            "on_dirty_starting",
            "dirty_post_fork",
            "dirty_worker_init",
            "dirty_worker_exit",
        ),
        _NO_DIRTY_WORKERS,
    ),
    "control_socket_mode": _NO_CONTROL,
    **dict.fromkeys(("paste", "raw_paste_global_conf"), _NO_PASTE),
    **dict.fromkeys(("reload_engine", "reload_extra_files"), "gunicorn's reloader is not supported"),
}
"""gunicorn's settings that a worker of ours does not heed, and why."""
