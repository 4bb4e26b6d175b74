"""The client that the specification of the HTTP interface gives in its section 7, unchanged from here on."""
# mypy: ignore-errors

import httpx
import asyncio
from typing import List, Dict
import logging

logger = logging.getLogger(__name__)

class PersistenceClient:
    """持久化服务客户端"""

    def __init__(self, base_url: str = "http://localhost:8001"):
        self.base_url = base_url
        self.session_buffer = []
        self.task_buffer = []
        self.batch_size = 100

    async def add_session(self, session: Dict):
        """添加会话到缓冲区"""
        self.session_buffer.append(session)
        if len(self.session_buffer) >= self.batch_size:
            await self._flush_sessions()

    async def add_task(self, task: Dict):
        """添加任务到缓冲区"""
        self.task_buffer.append(task)
        if len(self.task_buffer) >= self.batch_size:
            await self._flush_tasks()

    async def _flush_sessions(self):
        """发送会话批次"""
        if not self.session_buffer:
            return

        batch = self.session_buffer[:self.batch_size]
        self.session_buffer = self.session_buffer[self.batch_size:]

        try:
            async with httpx.AsyncClient(timeout=2.0) as client:
                await client.post(
                    f"{self.base_url}/api/v1/persistence/sessions/batch",
                    json={"sessions": batch}
                )
        except Exception as e:
            logger.warning(f"Failed to persist sessions: {e}")

    async def _flush_tasks(self):
        """发送任务批次"""
        if not self.task_buffer:
            return

        batch = self.task_buffer[:self.batch_size]
        self.task_buffer = self.task_buffer[self.batch_size:]

        try:
            async with httpx.AsyncClient(timeout=2.0) as client:
                await client.post(
                    f"{self.base_url}/api/v1/persistence/tasks/batch",
                    json={"tasks": batch}
                )
        except Exception as e:
            logger.warning(f"Failed to persist tasks: {e}")

    async def flush_all(self):
        """强制刷新所有缓冲区"""
        await self._flush_sessions()
        await self._flush_tasks()

        # 触发服务端刷新
        try:
            async with httpx.AsyncClient(timeout=10.0) as client:
                response = await client.post(
                    f"{self.base_url}/api/v1/persistence/flush"
                )
                return response.json()
        except Exception as e:
            logger.error(f"Failed to flush on server: {e}")
            return None
